// Rows of float32, bfloat16 and half in memory: loaded, stored and transposed sixteen at a time. See simd.h.
#pragma once

namespace capmoe::cpu {
namespace {

#if CAPMOE_LANES == 16

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

inline Vec widen(__m256i bits, Half) { return (Vec)_mm512_cvtph_ps(bits); }

inline Vec widen(__m256i bits, BFloat16) { return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16); }

// `count` (1 to 16) floats, then zeros.
inline Vec load_floats(const float* from, int64_t count) {
  return (Vec)_mm512_maskz_loadu_ps(first_lanes(count), from);
}

template <class T>
inline Vec load_floats(const T* from, int64_t count) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(count), from), T{});
}

// Sixteen of them.
inline Vec load_floats(const float* from) { return load(from); }

template <class T>
inline Vec load_floats(const T* from) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), T{});
}

inline void store_floats(float* to, Vec v, int64_t count) { _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)v); }

inline void store_floats(Half* to, Vec v, int64_t count) {
  const __m256i bits = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(to, first_lanes(count), bits);
}

// The bits of bfloat16 in the low half of each lane, rounded to nearest even; NaN stays NaN.
inline __m512i to_bfloat16(Vec v) {
  const __m512i bits = (__m512i)v;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
}

inline void store_floats(BFloat16* to, Vec v, int64_t count) {
  _mm256_mask_storeu_epi16(to, first_lanes(count), _mm512_cvtepi32_epi16(to_bfloat16(v)));
}

// Sixteen vectors of sixteen 32-bit values.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Row i now holds columns i % 4, + 4, + 8, + 12 of rows i / 4 * 4 to + 3: transpose the 4 x 4 of quarters.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// to[c, r] = from[r, c] for `rows` (1 to 16) rows of 16; the other columns of `to` [16, 16] are zero.
inline void transpose(const float* from, int64_t stride, int64_t rows, float* to) {
  __m512i r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = i < rows ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
  transpose(r);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + 16 * i, r[i]);
}

// Up to sixteen columns of sixteen rows, `count` of which are there; zeros where a row is null.
template <class T>
inline void load_rows(const T* const rows[16], int64_t first, int64_t count, __m512i r[16]) {
  if (count >= 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = rows[i] ? (__m512i)load_floats(rows[i] + first) : _mm512_setzero_si512();
  } else {
    for (int i = 0; i < 16; ++i) r[i] = rows[i] ? (__m512i)load_floats(rows[i] + first, count) : _mm512_setzero_si512();
  }
}

// to[c, r] = rows[r][first + c] for sixteen rows, zeros where null, and c < 16.
template <class T>
inline void transpose_rows(const T* const rows[16], int64_t first, float* to) {
  __m512i r[16];
  load_rows(rows, first, 16, r);
  transpose(r);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + 16 * i, r[i]);
}

template <class T>
inline void to_floats(const T* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load_floats(from + i));
  if (i < count) store_floats(to + i, load_floats(from + i, count - i), count - i);
}

// to = tile + bias for `count` (1 to 16) columns.
template <class T>
inline void store_row(const float* tile, const float* bias, T* to, int64_t count) {
  store_floats(to, load(tile) + load(bias), count);
}

// Blocks of sixteen that fill a cache line.
template <class T>
constexpr int64_t kLineBlocks = 4 / sizeof(T);

// A line of tile + bias that nobody will read soon: past the caches. `to` is aligned to a line.
inline void stream_line(const float* tile, const float* bias, float* to) {
  _mm512_stream_ps(to, (__m512)(load(tile) + load(bias)));
}

template <class T>
inline void stream_line(const float* tile, const float* bias, T* to) {
  alignas(64) T line[32];
  store_row(tile, bias, line, 16);
  store_row(tile + 16, bias + 16, line + 16, 16);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_load_si512(line));
}

// Other threads see what was streamed before.
inline void finish_streams() { _mm_sfence(); }

#else

#if CAPMOE_LANES == 8

inline void eight_to_floats(const float* from, float* to) { std::memcpy(to, from, 32); }

inline void eight_to_floats(const Half* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

inline void eight_to_floats(const BFloat16* from, float* to) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
}

#else

template <class T>
inline void eight_to_floats(const T* from, float* to) {
  for (int i = 0; i < 8; ++i) to[i] = to_float(from[i]);
}

#endif

template <class T>
inline void to_floats(const T* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) eight_to_floats(from + i, to + i);
  for (; i < count; ++i) to[i] = to_float(from[i]);
}

inline void transpose(const float* from, int64_t stride, int64_t rows, float* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < 16; ++j) to[j * 16 + i] = from[i * stride + j];
  }
}

template <class T>
inline void store_row(const float* tile, const float* bias, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<T>(tile[i] + bias[i]);
}

template <class T>
constexpr int64_t kLineBlocks = 1;

template <class T>
inline void stream_line(const float* tile, const float* bias, T* to) {
  store_row(tile, bias, to, 16);
}

inline void finish_streams() {}

// kLanes of them.
inline Vec load_floats(const float* from) { return load(from); }

inline Vec load_floats(const Half* from) {
#if CAPMOE_LANES == 8
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  alignas(16) float values[kLanes];
  for (int i = 0; i < kLanes; ++i) values[i] = to_float(from[i]);
  return load(values);
#endif
}

#endif

// Of kLanes pairs the first ones and the second ones.
inline std::pair<Vec, Vec> load_pairs(const BFloat16* from) {
  IntVec bits;
  std::memcpy(&bits, from, sizeof(bits));
  return {(Vec)(bits << 16), (Vec)(bits & static_cast<int32_t>(0xffff0000u))};
}

}  // namespace
}  // namespace capmoe::cpu
