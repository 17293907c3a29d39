// What the gate's driver (gate.cpp) and its instruction sets (gate_<isa>.cpp) share.
#pragma once

#include <cmath>

#include "kernels.h"

namespace capmoe::cpu {

constexpr float kForbidden = -INFINITY;

// Rows of scratch are padded to whole vectors of every instruction set.
constexpr int64_t kGatePadding = 16;

// A thread's memory for a batch of B tokens, aligned to 64 bytes. [E'] is [E], padded.
struct GateBatch {
  int64_t tokens;  // B
  int64_t stride;  // E'
  float* logits;   // [B, E'], kForbidden behind the last expert
  float* scores;   // [B, E']
  int32_t* keys;   // [B, E']
  int64_t maxima_stride;
  int32_t* maxima;  // [B, maxima_stride]: of a row's vectors
  float* divisor;   // [B]: the scores are still to be divided by it
  int64_t* found;   // [B]
  int32_t* ids;     // [B, K]
  float* chosen;    // [B, K]
  float* divide;    // [B, K]
  float* groups;    // [num_groups]
};

// gate's arguments.
template <class T>
struct GateArgs {
  const T* logits;
  const float* bias;  // [E'] or null
  Gate config;
  int32_t* expert_ids;
  float *weights, *scores;
};

// Tokens [begin, end). One function per instruction set; the caller has checked that the processor has it.
template <class T>
void gate_scalar(const GateArgs<T>& args, const GateBatch& batch, int64_t begin, int64_t end);
#if defined(__x86_64__)
template <class T>
void gate_avx2(const GateArgs<T>& args, const GateBatch& batch, int64_t begin, int64_t end);
template <class T>
void gate_avx512(const GateArgs<T>& args, const GateBatch& batch, int64_t begin, int64_t end);
#endif

}  // namespace capmoe::cpu
