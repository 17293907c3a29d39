// CUB's device-wide algorithms through their own host code, which chooses tiles, temporary storage and launches.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_reduce.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>

// Each is called twice: without `memory` it says how many bytes it wants.
extern "C" int inclusive_sum(void* memory, size_t* bytes, const int* from, int* to, int count) {
  return cub::DeviceScan::InclusiveSum(memory, *bytes, from, to, count);
}

extern "C" int sum(void* memory, size_t* bytes, const float* from, float* to, int count) {
  return cub::DeviceReduce::Sum(memory, *bytes, from, to, count);
}

extern "C" int sort_pairs(void* memory, size_t* bytes, const unsigned* keys, unsigned* sorted, const int* values,
                          int* sorted_values, int count) {
  return cub::DeviceRadixSort::SortPairs(memory, *bytes, keys, sorted, values, sorted_values, count);
}

extern "C" int select_flagged(void* memory, size_t* bytes, const int* from, const char* flags, int* to, int* kept,
                              int count) {
  return cub::DeviceSelect::Flagged(memory, *bytes, from, flags, to, kept, count);
}
