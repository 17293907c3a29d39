// Launchers as an extension has them, each a way to use CUDA's runtime; the tests load them by ctypes.
#include <cuda.h>
#include <cuda_runtime.h>

#include "launchers.cuh"

__global__ void saxpy(const float* x, float* y, float a, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] += a * x[i];
}

// No guard: a launch with too many threads goes out of bounds.
__global__ void scale(float* x, float a) { x[blockIdx.x * blockDim.x + threadIdx.x] *= a; }

// Two kernels: what one is allowed stays allowed, the other never asks.
template <bool asks>
__global__ void reverse(const int* in, int* out, int n) {
  extern __shared__ int row[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = in[i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = row[n - 1 - i];
}

// Every block adds its number; when all have, each writes the sum.
__global__ void agree(int* arrived, int* out) {
  if (threadIdx.x == 0) {
    atomicAdd(&arrived[1], blockIdx.x);
    __threadfence();
    atomicAdd(&arrived[0], 1);
    while (atomicAdd(&arrived[0], 0) < gridDim.x) continue;
    out[blockIdx.x] = atomicAdd(&arrived[1], 0);
  }
}

__global__ void describe(Shape shape, char tag, double scale, long long* out) {
  out[0] = shape.rows;
  out[1] = shape.columns;
  out[2] = tag;
  out[3] = static_cast<long long>(scale * 8);
#ifdef __CUDA_ARCH__  // the host's pass has none
  out[4] = __CUDA_ARCH__;
#endif
}

__device__ int table[4] = {1, 2, 3, 4};
__constant__ float weights[3];

__global__ void use_table(const int* at, float* out) {
  out[threadIdx.x] = table[at[threadIdx.x]] * weights[threadIdx.x];
}

extern "C" {

int launch_saxpy(const float* x, float* y, float a, int n, cudaStream_t stream) {
  saxpy<<<(n + 127) / 128, 128, 0, stream>>>(x, y, a, n);
  return cudaGetLastError();
}

int launch_scale(float* x, float a, int blocks, int threads) {
  scale<<<blocks, threads>>>(x, a);
  return cudaGetLastError();
}

int launch_reverse(const int* in, int* out, int n, int allowed) {
  const cudaError_t error = cudaFuncSetAttribute(reverse<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  if (error != cudaSuccess) return error;
  reverse<true><<<1, 256, n * sizeof(int)>>>(in, out, n);
  return cudaGetLastError();
}

int launch_reverse_without_asking(const int* in, int* out, int n) {
  reverse<false><<<1, 256, n * sizeof(int)>>>(in, out, n);
  return cudaGetLastError();
}

int launch_agree(int* arrived, int* out, int blocks) {
  void* args[] = {&arrived, &out};
  const void* kernel = reinterpret_cast<const void*>(agree);
  return cudaLaunchCooperativeKernel(kernel, blocks, 32, args, 0, nullptr);
}

int launch_describe(int rows, int columns, char tag, double scale, long long* out) {
  cudaLaunchConfig_t config = {};
  config.gridDim = 1, config.blockDim = 1;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, describe, Shape{rows, columns}, tag, scale, out);
}

int launch_clusters(float* x, int size) {
  cudaLaunchConfig_t config = {};
  config.gridDim = 4, config.blockDim = 32;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = size, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, scale, x, 1.0f);
}

// A launch by hand whose second argument has four bytes where the kernel takes eight.
int launch_with_a_short_argument(const int* at) {
  const struct {
    int address, rest;
  } out = {64, 1};
  void* args[] = {&at, const_cast<int*>(&out.address)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(use_table), 1, 3, args, 0, nullptr);
}

int launch_without_an_argument(const int* at) {
  void* args[] = {&at, nullptr};
  return cudaLaunchKernel(reinterpret_cast<const void*>(use_table), 1, 3, args, 0, nullptr);
}

int launch_use_table(const int* at, float* out, const float* new_weights, int factor) {
  int old[4];
  cudaMemcpyToSymbol(weights, new_weights, 3 * sizeof(float));
  cudaMemcpyFromSymbol(old, table, sizeof(old));
  for (int& value : old) value *= factor;
  cudaMemcpyToSymbol(table, old, sizeof(old));
  use_table<<<1, 3>>>(at, out);
  return cudaGetLastError();
}

int write_beyond_a_symbol(const float* from) { return cudaMemcpyToSymbol(weights, from, 4 * sizeof(float)); }

// Through device memory of its own: zeros, two streams with an event between them, a copy back.
int sum_through_streams(const float* x, float* host, int n, int steps) {
  float* y = nullptr;
  cudaStream_t first, second;
  cudaEvent_t ready;
  cudaStreamCreate(&first);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&ready, cudaEventDisableTiming);
  cudaMallocAsync(&y, n * sizeof(float), first);
  cudaMemsetAsync(y, 0, n * sizeof(float), first);
  cudaEventRecord(ready, first);
  cudaStreamWaitEvent(second, ready, 0);
  for (int step = 0; step < steps; ++step) launch_saxpy(x, y, 1.0f, n, second);
  cudaMemcpyAsync(host, y, n * sizeof(float), cudaMemcpyDeviceToHost, second);
  cudaStreamSynchronize(second);
  cudaFreeAsync(y, second);
  cudaEventDestroy(ready);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
  return cudaGetLastError();
}

int use_destroyed_stream(const float* x, float* y, int n) {
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  cudaStreamDestroy(stream);
  return launch_saxpy(x, y, 1.0f, n, stream);
}

// The kernel writes `bytes` more than cudaMalloc was asked for.
int overrun_own_memory(int beyond) {
  float* x = nullptr;
  cudaMalloc(&x, 64 * sizeof(float) - beyond);
  const int error = launch_scale(x, 2.0f, 1, 64);
  cudaFree(x);
  return error;
}

int use_after_free(const float* x, int n) {
  float* y = nullptr;
  cudaMalloc(&y, n * sizeof(float));
  cudaFree(y);
  return launch_saxpy(x, y, 1.0f, n, nullptr);
}

int free_twice() {
  void* x = nullptr;
  cudaMalloc(&x, 16);
  cudaFree(x);
  return cudaFree(x);
}

int ignore_every_error(float* x, int threads) {
  launch_scale(x, 2.0f, 1, threads);
  return 0;
}

int last_error() { return cudaGetLastError(); }

int copy_bytes(void* to, const void* from, size_t bytes, int kind) {
  return cudaMemcpy(to, from, bytes, static_cast<cudaMemcpyKind>(kind));
}

int time_a_kernel() {
  cudaEvent_t event;
  float milliseconds = 0;
  cudaEventCreate(&event);
  const cudaError_t error = cudaEventElapsedTime(&milliseconds, event, event);
  cudaEventDestroy(event);
  return error;
}

// A tensor map of a [rows][columns] array, tiles of 8 x 8; what the driver's function says.
int make_tensor_map(const float* x, long rows, long columns) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
  if (status != cudaDriverEntryPointSuccess) return -1;
  CUtensorMap map;
  const cuuint64_t dims[] = {cuuint64_t(columns), cuuint64_t(rows)}, strides[] = {columns * sizeof(float)};
  const cuuint32_t box[] = {8, 8}, steps[] = {1, 1};
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found)(
      &map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, const_cast<float*>(x), dims, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

int ask_the_driver_for_more() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  return cudaGetDriverEntryPointByVersion("cuMemAlloc", &found, 12000, cudaEnableDefault, &status);
}

int ask_for_a_graph() {
  cudaGraph_t graph;
  return cudaGraphCreate(&graph, 0);
}

int device_numbers(int* out) {
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  out[0] = properties.major, out[1] = properties.multiProcessorCount, out[2] = properties.sharedMemPerBlockOptin;
  cudaDeviceGetAttribute(&out[3], cudaDevAttrMultiProcessorCount, 0);
  cudaDeviceGetAttribute(&out[4], cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  cudaGetDeviceCount(&out[5]);
  return cudaGetLastError();
}

int occupancy_of_reverse(int* blocks, int threads, int dynamic_shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reverse<false>, threads, dynamic_shared);
}

int attributes_of_reverse(int* out) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, reverse<false>);
  out[0] = attributes.numRegs, out[1] = attributes.maxThreadsPerBlock, out[2] = attributes.maxDynamicSharedSizeBytes;
  return error;
}

const char* name_of_error(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
}
