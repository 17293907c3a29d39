// Block-wide sort, scan, reduction and histogram by CUB, and a histogram by hand.
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>
#include <cub/warp/warp_reduce.cuh>

constexpr int kThreads = 128, kItems = 4, kTile = kThreads * kItems, kBins = 64;

// One block: the `count` <= kTile scores from the largest to the smallest, with their positions.
extern "C" __global__ void __launch_bounds__(kThreads)
    sort_scores(const float* __restrict__ scores, float* __restrict__ sorted, int* __restrict__ order, int count) {
  using Sort = cub::BlockRadixSort<float, kThreads, kItems, int>;
  __shared__ typename Sort::TempStorage storage;
  float keys[kItems];
  int positions[kItems];
  for (int i = 0; i < kItems; ++i) {
    positions[i] = threadIdx.x * kItems + i;
    keys[i] = positions[i] < count ? scores[positions[i]] : -INFINITY;
  }
  Sort(storage).SortDescending(keys, positions);
  for (int i = 0; i < kItems; ++i) {
    const int rank = threadIdx.x * kItems + i;
    if (rank < count) {
      sorted[rank] = keys[i];
      order[rank] = positions[i];
    }
  }
}

// A block per row, a tile at a time; the transposing load and store share memory with the scan.
extern "C" __global__ void __launch_bounds__(kThreads)
    scan_rows(const int* __restrict__ values, int* __restrict__ sums, int columns) {
  using Load = cub::BlockLoad<int, kThreads, kItems, cub::BLOCK_LOAD_TRANSPOSE>;
  using Scan = cub::BlockScan<int, kThreads>;
  using Store = cub::BlockStore<int, kThreads, kItems, cub::BLOCK_STORE_TRANSPOSE>;
  __shared__ union {
    typename Load::TempStorage load;
    typename Scan::TempStorage scan;
    typename Store::TempStorage store;
  } storage;
  const int* source = values + static_cast<size_t>(blockIdx.x) * columns;
  int* target = sums + static_cast<size_t>(blockIdx.x) * columns;
  int carry = 0;
  for (int start = 0; start < columns; start += kTile) {
    int items[kItems], total;
    Load(storage.load).Load(source + start, items, columns - start, 0);
    __syncthreads();  // load to scan
    Scan(storage.scan).InclusiveSum(items, items, total);
    __syncthreads();  // scan to store
    for (int i = 0; i < kItems; ++i) items[i] += carry;
    Store(storage.store).Store(target + start, items, columns - start);
    __syncthreads();  // store to the next load
    carry += total;
  }
}

// A warp per row: its sum. The block adds the sums of its rows to grand_total.
extern "C" __global__ void __launch_bounds__(kThreads)
    sum_rows(const int* __restrict__ values, int* __restrict__ sums, int* grand_total, int rows, int columns) {
  using WarpSum = cub::WarpReduce<int>;
  using BlockSum = cub::BlockReduce<int, kThreads>;
  __shared__ typename WarpSum::TempStorage warp_storage[kThreads / 32];
  __shared__ typename BlockSum::TempStorage block_storage;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = blockIdx.x * (kThreads / 32) + warp;
  int mine = 0;
  if (row < rows) {
    for (int i = lane; i < columns; i += 32) mine += values[static_cast<size_t>(row) * columns + i];
  }
  const int sum = WarpSum(warp_storage[warp]).Sum(mine);
  if (row < rows && lane == 0) sums[row] = sum;
  const int block_sum = BlockSum(block_storage).Sum(mine);
  if (threadIdx.x == 0) atomicAdd(grand_total, block_sum);
}

// Half a warp per row of 16 values: each half reduces under its own member mask.
extern "C" __global__ void __launch_bounds__(kThreads)
    largest_of_16(const float* __restrict__ values, float* __restrict__ largest, int rows) {
  using HalfWarp = cub::WarpReduce<float, 16>;
  __shared__ typename HalfWarp::TempStorage storage[kThreads / 16];
  const int half = threadIdx.x / 16, row = blockIdx.x * (kThreads / 16) + half;
  const float mine = row < rows ? values[static_cast<size_t>(row) * 16 + threadIdx.x % 16] : -INFINITY;
  const float found = HalfWarp(storage[half]).Reduce(mine, [](float a, float b) { return fmaxf(a, b); });
  if (row < rows && threadIdx.x % 16 == 0) largest[row] = found;
}

// counts[b] grows by the number of bins equal to b; a grid of any size.
extern "C" __global__ void __launch_bounds__(kThreads)
    count_bins(const int* __restrict__ bins, int count, int* __restrict__ counts) {
  __shared__ int mine[kBins];
  if (threadIdx.x < kBins) mine[threadIdx.x] = 0;
  __syncthreads();  // the block's counts are zero
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    atomicAdd(&mine[bins[i]], 1);
  }
  __syncthreads();  // the block's counts are complete
  if (threadIdx.x < kBins) atomicAdd(&counts[threadIdx.x], mine[threadIdx.x]);
}

// One block: the histogram of kTile bytes below kBins, by sorting them.
extern "C" __global__ void __launch_bounds__(kThreads)
    count_bytes(const unsigned char* __restrict__ bytes, int* __restrict__ counts) {
  using Histogram = cub::BlockHistogram<unsigned char, kThreads, kItems, kBins, cub::BLOCK_HISTO_SORT>;
  __shared__ typename Histogram::TempStorage storage;
  __shared__ int mine[kBins];
  unsigned char items[kItems];
  for (int i = 0; i < kItems; ++i) items[i] = bytes[i * kThreads + threadIdx.x];
  Histogram(storage).Histogram(items, mine);
  __syncthreads();  // the histogram is complete
  if (threadIdx.x < kBins) counts[threadIdx.x] = mine[threadIdx.x];
}
