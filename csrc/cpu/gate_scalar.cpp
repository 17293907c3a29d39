// The gate for any processor: vectors of four, in whatever the compiler makes of them.
#include "gate.h"

#define CAPMOE_LANES 4
#include "gate_rows.h"

namespace capmoe::cpu {

template <class T>
void gate_scalar(const GateArgs<T>& args, const GateBatch& batch, int64_t begin, int64_t end) {
  gate_batches(args, batch, begin, end);
}

template void gate_scalar(const GateArgs<float>&, const GateBatch&, int64_t, int64_t);
template void gate_scalar(const GateArgs<BFloat16>&, const GateBatch&, int64_t, int64_t);
template void gate_scalar(const GateArgs<Half>&, const GateBatch&, int64_t, int64_t);

}  // namespace capmoe::cpu
