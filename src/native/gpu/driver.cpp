#include "gpu/driver.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace dali::gpu {

namespace {

#ifdef _WIN32
constexpr const char* SYSTEM = "nvcuda.dll";
void* open_library(const char* path) { return reinterpret_cast<void*>(LoadLibraryA(path)); }
void* find(void* library, const char* symbol) {
    return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), symbol));
}
#else
constexpr const char* SYSTEM = "libcuda.so.1";
void* open_library(const char* path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }
void* find(void* library, const char* symbol) { return dlsym(library, symbol); }
#endif

}  // namespace

Driver::Driver(const std::string& path) {
    const char* name = path.empty() ? SYSTEM : path.c_str();
    void* library = open_library(name);
    if (!library) throw Failure(0, std::string("there is no NVIDIA driver (") + name + " cannot be loaded)");
    const auto get = [&](auto& function, const char* symbol) {
        void* found = find(library, symbol);
        if (!found) throw Failure(0, std::string("the NVIDIA driver is too old: it lacks ") + symbol);
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
    };
    get(error_name_, "cuGetErrorName");
    get(error_text_, "cuGetErrorString");
#define DALI_GET(name, symbol, ...) get(name##_, symbol);
    DALI_CUDA_CALLS(DALI_GET)
#undef DALI_GET
    DALI_CUDA(*this, initialise, 0);
}

void Driver::check(int result, const char* call) const {
    if (result == 0) return;
    const char *name = nullptr, *text = nullptr;
    error_name_(result, &name);
    error_text_(result, &text);
    throw Failure(result, std::string(call) + ": " + (name ? name : std::to_string(result)) + (text ? std::string(", ") + text : ""));
}

}  // namespace dali::gpu
