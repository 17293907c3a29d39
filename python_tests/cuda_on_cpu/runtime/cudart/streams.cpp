// Streams and events. Every launch is over when it returns, so that they only have to exist.
#include <set>

#include "standin.h"

namespace standin {
namespace {

std::set<const void*> streams, events;

cudaError_t make_stream(cudaStream_t* stream) {
  *stream = reinterpret_cast<cudaStream_t>(new char);
  streams.insert(*stream);
  return done(cudaSuccess);
}

cudaError_t make_event(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new char);
  events.insert(*event);
  return done(cudaSuccess);
}

cudaError_t bad(const char* call) {
  return problem(cudaErrorInvalidResourceHandle, "Invalid", std::string(call) + ": no such stream or event");
}

cudaError_t use(const char* call, cudaStream_t stream) { return valid_stream(stream) ? done(cudaSuccess) : bad(call); }

cudaError_t use(const char* call, cudaStream_t stream, cudaEvent_t event) {
  return valid_stream(stream) && events.count(event) ? done(cudaSuccess) : bad(call);
}

cudaError_t wait(const char* call, bool exists) {
  if (!exists) return bad(call);
  note("synchronise", call);
  return done(cudaSuccess);
}

}  // namespace

// The three streams that always exist are 0, the legacy one and the thread's own.
bool valid_stream(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread || streams.count(stream);
}

}  // namespace standin

using namespace standin;

extern "C" {

cudaError_t cudaDeviceSynchronize() { return wait("cudaDeviceSynchronize", true); }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait("cudaStreamSynchronize", valid_stream(s)); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return wait("cudaEventSynchronize", events.count(e)); }

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return make_stream(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return make_stream(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return make_stream(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  if (streams.erase(s) == 0) return bad("cudaStreamDestroy");
  delete reinterpret_cast<char*>(s);
  return done(cudaSuccess);
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return use("cudaStreamQuery", s); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) { return use("cudaStreamWaitEvent", s, e); }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return use("cudaStreamIsCapturing", s);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return done(cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return make_event(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return make_event(event); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  if (events.erase(e) == 0) return bad("cudaEventDestroy");
  delete reinterpret_cast<char*>(e);
  return done(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return use("cudaEventRecord", s, e); }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) {
  return use("cudaEventRecordWithFlags", s, e);
}
cudaError_t cudaEventQuery(cudaEvent_t e) { return use("cudaEventQuery", nullptr, e); }

// Nothing here is a time.
cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) { return unsupported("cudaEventElapsedTime"); }
}
