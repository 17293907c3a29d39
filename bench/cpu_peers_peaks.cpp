// What one core can do at most: compiled by cpu_peers_peaks.py for the machine it runs on. A function repeats its step
// `n` times and returns the floating-point operations or bytes of it all; one whose instructions this machine lacks is
// not there.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using Line = uint64_t __attribute__((vector_size(64)));

volatile float sink;

// Enough sums that do not wait for each other to keep two units busy.
constexpr int kSums = 12;

}  // namespace

extern "C" {

#if defined(__AVX512F__)

double fma_fp32(int64_t n) {
  __m512 sums[kSums];
  for (int s = 0; s < kSums; ++s) sums[s] = _mm512_set1_ps(s);  // or they would be computed once
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (int64_t i = 0; i < n; ++i) {
    for (int s = 0; s < kSums; ++s) sums[s] = _mm512_fmadd_ps(a, b, sums[s]);
  }
  for (__m512 sum : sums) sink = _mm512_reduce_add_ps(sum);
  return 2.0 * 16 * kSums * n;
}

#elif defined(__FMA__)

double fma_fp32(int64_t n) {
  __m256 sums[kSums];
  for (int s = 0; s < kSums; ++s) sums[s] = _mm256_set1_ps(s);
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (int64_t i = 0; i < n; ++i) {
    for (int s = 0; s < kSums; ++s) sums[s] = _mm256_fmadd_ps(a, b, sums[s]);
  }
  for (__m256 sum : sums) sink = _mm256_cvtss_f32(sum);
  return 2.0 * 8 * kSums * n;
}

#endif
#if defined(__AVX512BF16__)

double dot_bf16(int64_t n) {
  __m512 sums[kSums];
  for (int s = 0; s < kSums; ++s) sums[s] = _mm512_set1_ps(s);  // or they would be computed once
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
  for (int64_t i = 0; i < n; ++i) {
    for (int s = 0; s < kSums; ++s) sums[s] = _mm512_dpbf16_ps(sums[s], a, a);
  }
  for (__m512 sum : sums) sink = _mm512_reduce_add_ps(sum);
  return 2.0 * 32 * kSums * n;
}

#endif
#if defined(__AMX_BF16__) && defined(__linux__)

double tile_bf16(int64_t n) {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0;
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes_per_row[tile] = 64;
    config.rows[tile] = 16;
  }
  asm volatile("" : : "r"(&config) : "memory");  // the intrinsic does not say that it reads all of it
  _tile_loadconfig(&config);                     // and zeroes the tiles
  for (int64_t i = 0; i < n; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 2.0 * 16 * 16 * 32 * 4 * n;
}

#endif

// `n` lines of 64 bytes in four streams, which take more than one from one core's prefetchers.
double read_lines(const Line* data, int64_t n) {
  const int64_t quarter = n / 4;
  Line sums[4] = {};
  for (int64_t i = 0; i < quarter; ++i) {
    for (int64_t stream = 0; stream < 4; ++stream) sums[stream] += data[stream * quarter + i];
  }
  for (const Line& sum : sums) sink = static_cast<float>(sum[0] ^ sum[7]);
  return 64.0 * 4 * quarter;
}

}  // extern "C"
