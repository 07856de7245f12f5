// The CUDA driver, found when it is first asked for: neither building nor running dali elsewhere needs anything of CUDA's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace dali::gpu {

using Address = uint64_t;  // of device memory; on the host of what is mapped
using Handle = void*;      // of a context, module, function, stream, event or graph

// A driver's call that failed; `code` as cuda.h numbers them.
struct Failure : std::runtime_error {
    Failure(int code, const std::string& what) : std::runtime_error(what), code(code) {}
    int code;
};
constexpr int OUT_OF_MEMORY = 2, NOT_READY = 600;

// What is called of the driver: name here, symbol in the library, parameters. Its results are codes, 0 for success.
#define DALI_CUDA_CALLS(call)                                                                                              \
    call(initialise, "cuInit", unsigned)                                                                                   \
    call(driver_version, "cuDriverGetVersion", int*)                                                                       \
    call(device_count, "cuDeviceGetCount", int*)                                                                           \
    call(get_device, "cuDeviceGet", int*, int)                                                                             \
    call(device_name, "cuDeviceGetName", char*, int, int)                                                                  \
    call(device_attribute, "cuDeviceGetAttribute", int*, int, int)                                                         \
    call(total_memory, "cuDeviceTotalMem_v2", size_t*, int)                                                                \
    call(retain_context, "cuDevicePrimaryCtxRetain", Handle*, int)                                                         \
    call(release_context, "cuDevicePrimaryCtxRelease_v2", int)                                                             \
    call(set_context, "cuCtxSetCurrent", Handle)                                                                           \
    call(load_module, "cuModuleLoadData", Handle*, const void*)                                                            \
    call(unload_module, "cuModuleUnload", Handle)                                                                          \
    call(get_function, "cuModuleGetFunction", Handle*, Handle, const char*)                                                \
    call(launch, "cuLaunchKernel", Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle,   \
         void**, void**)                                                                                                   \
    call(memory, "cuMemGetInfo_v2", size_t*, size_t*)                                                                      \
    call(allocate, "cuMemAlloc_v2", Address*, size_t)                                                                      \
    call(release, "cuMemFree_v2", Address)                                                                                 \
    call(allocate_host, "cuMemHostAlloc", void**, size_t, unsigned)                                                        \
    call(release_host, "cuMemFreeHost", void*)                                                                             \
    call(register_host, "cuMemHostRegister_v2", void*, size_t, unsigned)                                                   \
    call(unregister_host, "cuMemHostUnregister", void*)                                                                    \
    call(device_address, "cuMemHostGetDevicePointer_v2", Address*, void*, unsigned)                                        \
    call(copy_down, "cuMemcpyDtoHAsync_v2", void*, Address, size_t, Handle)                                                \
    call(copy_up, "cuMemcpyHtoDAsync_v2", Address, const void*, size_t, Handle)                                            \
    call(create_stream, "cuStreamCreate", Handle*, unsigned)                                                               \
    call(destroy_stream, "cuStreamDestroy_v2", Handle)                                                                     \
    call(finish_stream, "cuStreamSynchronize", Handle)                                                                     \
    call(query_stream, "cuStreamQuery", Handle)                                                                            \
    call(wait_event, "cuStreamWaitEvent", Handle, Handle, unsigned)                                                        \
    call(create_event, "cuEventCreate", Handle*, unsigned)                                                                 \
    call(destroy_event, "cuEventDestroy_v2", Handle)                                                                       \
    call(record_event, "cuEventRecord", Handle, Handle)                                                                    \
    call(query_event, "cuEventQuery", Handle)                                                                              \
    call(finish_event, "cuEventSynchronize", Handle)                                                                       \
    call(elapsed, "cuEventElapsedTime", float*, Handle, Handle)                                                            \
    call(begin_capture, "cuStreamBeginCapture_v2", Handle, int)                                                            \
    call(end_capture, "cuStreamEndCapture", Handle, Handle*)                                                               \
    call(make_graph, "cuGraphInstantiateWithFlags", Handle*, Handle, unsigned long long)                                   \
    call(launch_graph, "cuGraphLaunch", Handle, Handle)                                                                    \
    call(destroy_graph, "cuGraphExecDestroy", Handle)                                                                      \
    call(destroy_captured, "cuGraphDestroy", Handle)

class Driver {
  public:
    // Loads the library `path`, or the system's; throws Failure where there is none, or it is too old to have all calls.
    explicit Driver(const std::string& path = "");
    Driver(const Driver&) = delete;  // the library stays loaded: modules and memory outlive whoever opened it

#define DALI_DECLARE(name, symbol, ...) int (*name##_)(__VA_ARGS__) = nullptr;
    DALI_CUDA_CALLS(DALI_DECLARE)
#undef DALI_DECLARE

    // Throws the Failure that a call's result stands for.
    void check(int result, const char* call) const;

  private:
    int (*error_name_)(int, const char**) = nullptr;
    int (*error_text_)(int, const char**) = nullptr;
};

// driver.name_(...), checked.
#define DALI_CUDA(driver, name, ...) (driver).check((driver).name##_(__VA_ARGS__), #name)

}  // namespace dali::gpu
