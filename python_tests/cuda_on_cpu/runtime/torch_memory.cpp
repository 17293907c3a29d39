// Tensors that an operator allocates become device memory: torch tells its profiler of each allocation, and this is
// one.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <memory>
#include <set>

extern "C" int standin_add_tensor(uint64_t base, uint64_t bytes, int read_only);
extern "C" void standin_drop_tensor(uint64_t base);

namespace {

struct Watcher : c10::MemoryReportingInfoBase {
  ~Watcher() override {
    for (const uint64_t base : added) standin_drop_tensor(base);
  }

  // Sizes are exact: the bytes of the storage, negative when it goes.
  void reportMemoryUsage(void* memory, int64_t bytes, size_t, size_t, c10::Device) override {
    const uint64_t base = reinterpret_cast<uint64_t>(memory);
    if (bytes > 0) {
      standin_add_tensor(base, bytes, false);
      added.insert(base);
    } else if (added.erase(base) != 0) {
      standin_drop_tensor(base);
    }
  }

  bool memoryProfilingEnabled() const override { return true; }

  std::set<uint64_t> added;
};

}  // namespace

extern "C" {

void watch_allocations() {
  c10::ThreadLocalDebugInfo::_push(c10::DebugInfoKind::PROFILER_STATE, std::make_shared<Watcher>());
}

void watch_no_longer() { c10::ThreadLocalDebugInfo::_pop(c10::DebugInfoKind::PROFILER_STATE); }
}
