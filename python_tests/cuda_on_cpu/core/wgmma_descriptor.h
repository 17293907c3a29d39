// The 64-bit descriptor of a matrix in shared memory, and where its 16-byte granules lie. PTX ISA, "Matrix-Descriptor
// Format" and "Canonical Layouts". An H100 agrees: on every layout, and on the base offset of K-major ones.
#pragma once

#include "machine.h"

namespace emu {

struct MatrixDescriptor {
  uint32_t start, leading, stride;  // bytes
  uint32_t span;                    // of a swizzled row: 32, 64 or 128 bytes; 16 without a swizzle
  uint32_t phase;                   // base offset: the row of the swizzle's pattern that the start is in

  MatrixDescriptor(uint64_t bits, int lane) {
    start = (bits & 0x3fff) << 4, leading = (bits >> 16 & 0x3fff) << 4, stride = (bits >> 32 & 0x3fff) << 4;
    phase = bits >> 49 & 7;
    span = 16u << ((4 - (bits >> 62)) % 4);
    constexpr uint64_t kReserved = ~(0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62);
    if (bits & kReserved) {
      fault(kInvalid, lane, "matrix descriptor 0x%llx has reserved bits set", static_cast<unsigned long long>(bits));
    }
    if (phase && span == 16) fault(kInvalid, lane, "a base offset of %u in a descriptor without a swizzle", phase);
  }

  // K-major: 16 bytes of K, the `chunk`-th of row `line` of A or column `line` of B.
  uint32_t along_k(uint32_t line, uint32_t chunk) const {
    const uint32_t across = span == 16 ? leading : 16;
    return swizzled(start + line % 8 * span + line / 8 * stride + chunk * across);
  }

  // MN-major: 16 bytes of M or N, the `chunk`-th at `line` of K. Without a swizzle the two strides change roles.
  uint32_t along_mn(uint32_t line, uint32_t chunk) const {
    const uint32_t chunks = span / 16, down = span == 16 ? leading : stride, across = span == 16 ? stride : leading;
    return swizzled(start + line % 8 * span + line / 8 * down + chunk % chunks * 16 + chunk / chunks * across);
  }

 private:
  // Bits 4 to 6 of the address, as many as the span has, are exchanged by the row in the pattern: bits 7 to 9.
  uint32_t swizzled(uint32_t address) const { return address ^ (((address >> 7) - phase) & (span / 16 - 1)) << 4; }
};

}  // namespace emu
