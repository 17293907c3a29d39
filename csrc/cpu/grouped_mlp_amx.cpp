// The grouped MLP in bfloat16 with AMX: a tile is 16 tokens by 32 columns, or 32 columns by 16 weight rows.
#if defined(__x86_64__)

#include "simd_target.h"

CAPMOE_TARGET_BEGIN("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#define CAPMOE_LANES 16
#include "grouped_mlp_pairs.h"

namespace capmoe::cpu {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The compiler knows neither what a tile instruction reads nor what it writes.
inline void memory_fence() { asm volatile("" ::: "memory"); }

struct AmxPath : PairPath {
  static constexpr int64_t kRows = 32, kBlocks = 2, kBlockK = 256, kStep = 2 * kBlock;
  static constexpr int64_t kHalf = 16;  // tokens of a hardware tile

  struct Session {
    Session() {
      const TileConfig config;
      memory_fence();
      _tile_loadconfig(&config);
    }
    ~Session() { _tile_release(); }
  };

  static int64_t row_size(int64_t columns) { return columns; }

  // Hardware tiles one after the other: of the first sixteen tokens, then of the others.
  static int64_t place(int64_t row, int64_t column, int64_t count) {
    return row / kHalf * kHalf * count + column / kStep * kStep * kHalf + row % kHalf * kStep + column % kStep;
  }

  static void copy_row(const BFloat16* from, int64_t real, int64_t count, int64_t row, BFloat16* tile) {
    BFloat16* to = tile + place(row, 0, count);
    for (int64_t k = 0; k < count; k += kStep, to += kStep * kHalf) {
      const int64_t here = std::clamp<int64_t>(real - k, 0, kStep);
      const auto mask = static_cast<__mmask32>((int64_t{1} << here) - 1);
      _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(mask, from + k));
    }
  }

  // Tiles: sums 0 to 3 (tokens' half, block), tokens 4 and 5, weights 6 and 7.
  // The tile unit works on its own: what vectors have to do meanwhile is done between its steps.
  template <int kHalves, int kCount, class Meanwhile>
  static void multiply_tiles(Panel<BFloat16> weights, const BFloat16* tokens, int64_t k, float* sums, bool accumulate,
                             const Ahead& ahead, const Meanwhile& meanwhile) {
    const int64_t steps = k / kStep, some = ceil_div(kRows, steps);
    constexpr int64_t kSumRow = kBlocks * kBlock * sizeof(float), kTile = kStep * kBlock;
    float *second = sums + kBlock, *lower = sums + kHalf * kBlocks * kBlock, *last = lower + kBlock;
    memory_fence();
    if (accumulate) {
      _tile_loadd(0, sums, kSumRow);
      if constexpr (kCount == 2) _tile_loadd(1, second, kSumRow);
      if constexpr (kHalves == 2) _tile_loadd(2, lower, kSumRow);
      if constexpr (kHalves == 2 && kCount == 2) _tile_loadd(3, last, kSumRow);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const BFloat16 *x = tokens, *w = weights.data;
    for (int64_t step = 0; step < steps; ++step, x += kTile, w += kTile) {
      ahead.ask<kCount>(step);
      _tile_loadd(4, x, 64);
      _tile_loadd(6, w, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kCount == 2) {
        _tile_loadd(7, w + weights.stride, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kHalves == 2) {
        _tile_loadd(5, x + kHalf * k, 64);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kCount == 2) _tile_dpbf16ps(3, 5, 7);
      }
      meanwhile(std::min(step * some, kRows), std::min((step + 1) * some, kRows));
    }
    _tile_stored(0, sums, kSumRow);
    if constexpr (kCount == 2) _tile_stored(1, second, kSumRow);
    if constexpr (kHalves == 2) _tile_stored(2, lower, kSumRow);
    if constexpr (kHalves == 2 && kCount == 2) _tile_stored(3, last, kSumRow);
    memory_fence();
  }

  template <class Meanwhile>
  static void multiply(Panel<BFloat16> weights, int64_t blocks, const BFloat16* tokens, int64_t rows, int64_t k,
                       float* sums, bool accumulate, const Ahead& ahead, const Meanwhile& meanwhile) {
    const bool both = rows > kHalf;
    if (blocks == 2) {
      both ? multiply_tiles<2, 2>(weights, tokens, k, sums, accumulate, ahead, meanwhile)
           : multiply_tiles<1, 2>(weights, tokens, k, sums, accumulate, ahead, meanwhile);
    } else {
      both ? multiply_tiles<2, 1>(weights, tokens, k, sums, accumulate, ahead, meanwhile)
           : multiply_tiles<1, 1>(weights, tokens, k, sums, accumulate, ahead, meanwhile);
    }
  }
};

}  // namespace

void grouped_mlp_amx(const GroupedMlpArgs<BFloat16>& args) { Layer<AmxPath>(args).run(); }

}  // namespace capmoe::cpu

CAPMOE_TARGET_END

#endif
