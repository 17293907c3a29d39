// The grouped MLP in bfloat16 with AMX: 16 weight rows times 16 tokens is one tile.
#if defined(__x86_64__)

#include "simd_target.h"

CAPMOE_TARGET_BEGIN("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#define CAPMOE_LANES 16
#include "grouped_mlp_pairs.h"

namespace capmoe::cpu {
namespace {

// Tiles: sums 0 to 3 (half a, half b; by group), weights 4 and 5, tokens 6 and 7.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t weight_rows) {
    for (int i = 0; i < 6; ++i) rows[i] = static_cast<uint8_t>(weight_rows);
    rows[6] = rows[7] = kGroup;
  }
};

// The compiler knows neither what a tile instruction reads nor what it writes.
inline void memory_fence() { asm volatile("" ::: "memory"); }

inline void configure_tiles(int64_t weight_rows) {
  const TileConfig config(weight_rows);
  memory_fence();
  _tile_loadconfig(&config);
}

struct AmxPath : PairPath<32> {
  static constexpr int kHalf = 16, kGroups = 2;

  struct Session {
    Session() { configure_tiles(kHalf); }
    ~Session() { _tile_release(); }
  };

  // From here on copying the weights once, tile after tile, is cheaper than reading rows that lie far apart again and
  // again.
  static constexpr int64_t kManyTokens = 128;

  static int64_t weight_scratch(int64_t k) {
    return PairPath::weight_scratch(k) + 2 * kGroup * round_up(k, kStep) * sizeof(BFloat16);
  }

  static WeightRows<BFloat16> prepare(const BFloat16* a, const BFloat16* b, int64_t stride, int64_t half, int64_t k,
                                      int64_t next, int64_t tokens, void* scratch) {
    WeightRows<BFloat16> rows = PairPath::prepare(a, b, stride, half, k, next, tokens, scratch);
    if (tokens < kManyTokens) return rows;
    constexpr int64_t kWeights = kGroup * kStep;  // of a tile
    BFloat16* tiles_a = static_cast<BFloat16*>(scratch) + PairPath::weight_scratch(k) / sizeof(BFloat16);
    BFloat16* tiles_b = tiles_a + kWeights;
    for (int64_t i = 0; i < half; ++i) {
      for (int64_t column = 0; column + kStep <= k; column += kStep) {
        const int64_t to = 2 * kWeights * (column / kStep) + i * kStep;
        std::memcpy(tiles_a + to, a + i * stride + column, kStep * sizeof(BFloat16));
        std::memcpy(tiles_b + to, b + i * stride + column, kStep * sizeof(BFloat16));
      }
    }
    return {tiles_a, tiles_b, kStep, 2 * kWeights, 0, rows.tail_a, rows.tail_b};
  }

  // One step of k: 32 columns of both halves' weights and of the panel.
  template <int kCount>
  static inline void step(const BFloat16* a, const BFloat16* b, int64_t stride, const BFloat16* panel,
                          int64_t group_stride) {
    constexpr int64_t kPanelRow = 2 * kGroup * sizeof(BFloat16);
    _tile_loadd(6, panel, kPanelRow);
    _tile_loadd(4, a, stride * sizeof(BFloat16));
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, b, stride * sizeof(BFloat16));
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kCount == 2) {
      _tile_loadd(7, panel + group_stride, kPanelRow);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

  template <int kCount>
  static void multiply_tiles(const WeightRows<BFloat16>& rows, const BFloat16* panel, int64_t group_stride, int64_t k,
                             float* sums_a, float* sums_b, bool accumulate) {
    constexpr int64_t kSumRow = kGroups * kGroup * sizeof(float);
    memory_fence();
    if (accumulate) {
      _tile_loadd(0, sums_a, kSumRow);
      _tile_loadd(2, sums_b, kSumRow);
      _tile_loadd(1, sums_a + kGroup, kSumRow);
      _tile_loadd(3, sums_b + kGroup, kSumRow);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const int64_t whole = k / kStep * kStep;
    const BFloat16 *a = rows.a, *b = rows.b;
    for (int64_t i = 0; i < whole; i += kStep, a += rows.step, b += rows.step) {
      step<kCount>(a, b, rows.stride, panel + i * kGroup, group_stride);
    }
    if (whole < k) step<kCount>(rows.tail_a, rows.tail_b, kStep, panel + whole * kGroup, group_stride);
    _tile_stored(0, sums_a, kSumRow);
    _tile_stored(2, sums_b, kSumRow);
    if constexpr (kCount == 2) {
      _tile_stored(1, sums_a + kGroup, kSumRow);
      _tile_stored(3, sums_b + kGroup, kSumRow);
    }
    memory_fence();
  }

  static void multiply(const WeightRows<BFloat16>& rows, int64_t half, const BFloat16* panel, int64_t stride,
                       int64_t tokens, int64_t k, float* sums_a, float* sums_b, bool accumulate) {
    if (half < kHalf) configure_tiles(half);
    if (tokens > kGroup) {
      multiply_tiles<2>(rows, panel, stride, k, sums_a, sums_b, accumulate);
    } else {
      multiply_tiles<1>(rows, panel, stride, k, sums_a, sums_b, accumulate);
    }
    if (half < kHalf) configure_tiles(kHalf);
  }
};

}  // namespace

void grouped_mlp_amx(const GroupedMlpArgs<BFloat16>& args) { Layer<AmxPath>(args).run(); }

}  // namespace capmoe::cpu

CAPMOE_TARGET_END

#endif
