// Errors: the last one is remembered, a kernel's fault sticks, and what went wrong becomes an exception in Python.
#include "standin.h"

namespace standin {

Host* host = nullptr;

namespace {
cudaError_t last = cudaSuccess, sticky = cudaSuccess;

bool breaks_context(cudaError_t error) {
  return error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure || error == cudaErrorMisalignedAddress;
}
}  // namespace

cudaError_t done(cudaError_t error) {
  if (breaks_context(error)) sticky = error;
  if (sticky != cudaSuccess) error = sticky;
  if (error != cudaSuccess) last = error;
  return error;
}

void note(const char* kind, const char* call, uint64_t value) {
  if (host) host->note(kind, call, value);
}

cudaError_t problem(cudaError_t error, const char* kind, const std::string& text) {
  note(kind, text.c_str());
  return done(error);
}

cudaError_t unsupported(const char* call) {
  note("unsupported", call);
  return done(cudaErrorNotSupported);
}

}  // namespace standin

using namespace standin;

extern "C" {

void standin_connect(Host* emulator) { host = emulator; }

// As if the process had begun anew: Python has raised what the error was about.
void standin_forget_errors() { last = sticky = cudaSuccess; }

int standin_unsupported(const char* call) { return unsupported(call); }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = sticky;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define NAME(name) \
  case name:       \
    return #name;
    NAME(cudaSuccess)
    NAME(cudaErrorInvalidValue)
    NAME(cudaErrorMemoryAllocation)
    NAME(cudaErrorInitializationError)
    NAME(cudaErrorInvalidConfiguration)
    NAME(cudaErrorInvalidSymbol)
    NAME(cudaErrorInvalidDeviceFunction)
    NAME(cudaErrorInvalidDevice)
    NAME(cudaErrorNoKernelImageForDevice)
    NAME(cudaErrorInvalidResourceHandle)
    NAME(cudaErrorSymbolNotFound)
    NAME(cudaErrorIllegalAddress)
    NAME(cudaErrorLaunchOutOfResources)
    NAME(cudaErrorMisalignedAddress)
    NAME(cudaErrorLaunchFailure)
    NAME(cudaErrorCooperativeLaunchTooLarge)
    NAME(cudaErrorNotSupported)
#undef NAME
    default:
      return "cudaError";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorMisalignedAddress:
      return "misaligned address";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorNotSupported:
      return "operation not supported by the stand-in for libcudart";
    default:
      return cudaGetErrorName(error);
  }
}
}
