// A stand-in for libcuda, over host memory: what is queued runs at times a seed chooses, as adversely as events allow; vector clocks
// tell when two accesses of which one writes are ordered by nothing; any call can be made to fail. A "cubin" is the path of a library
// of kernels made for the CPU (tests/kernels/gpu/shimmed.cpp).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include <dlfcn.h>

#include "calls.h"

namespace {

using namespace dali::gpu;
using Clocks = std::map<int, uint64_t>;  // queue -> operations of it that are known to be over; queue 0 is the host

struct Access {
    const void* at;
    size_t bytes;
    bool writes;
};

// Where an event was recorded.
struct Point {
    bool done = false;
    Clocks known;
};

struct Event {
    std::shared_ptr<Point> latest;
};

struct Operation {
    std::function<void()> run;
    std::vector<Access> accesses;
    std::shared_ptr<Point> record, wait;
    Clocks known;  // by the host, when it was queued
    std::string name;
};

struct Stream {
    int number = 0;
    uint64_t done = 0;
    Clocks known;
    std::deque<Operation> queue;
};

struct Seen {
    int queue;
    uint64_t clock;
    std::string name;
};

struct State {
    std::mutex mutex;
    std::mt19937 random{0};
    bool eager = false;  // nothing is put off
    bool idle = false;   // nothing is done but to post a step's routing and give zeros: for measuring the host's own time
    std::vector<std::unique_ptr<Stream>> streams;
    Clocks host;
    std::map<const void*, size_t> memory;  // of the device and page-locked, and registered
    size_t total = size_t(1) << 30, used = 0;
    std::map<uintptr_t, Seen> written;               // by 64-byte cell
    std::map<uintptr_t, std::map<int, Seen>> read;
    std::vector<std::string> races;
    std::map<std::string, int> calls;
    std::map<std::string, size_t> copied;  // bytes, by call
    std::string failing;
    int failing_in = 0, failing_code = 0;
};

State& state() {
    static State* one = new State;
    return *one;
}

void note(Stream& stream, const Operation& operation) {
    State& s = state();
    if (s.eager) return;
    for (const Access& access : operation.accesses)
        for (uintptr_t cell = uintptr_t(access.at) / 64; cell * 64 < uintptr_t(access.at) + access.bytes; cell++) {
            const auto over = [&](const Seen& seen) {
                const auto known = stream.known.find(seen.queue);
                return seen.queue == stream.number || (known != stream.known.end() && known->second >= seen.clock);
            };
            const auto told = [&](const Seen& seen) {
                if (s.races.size() < 20) s.races.push_back(seen.name + " and " + operation.name + " touch the same memory in no order");
            };
            const auto writer = s.written.find(cell);
            if (writer != s.written.end() && !over(writer->second)) told(writer->second);
            if (access.writes) {
                for (const auto& [queue, reader] : s.read[cell])
                    if (!over(reader)) told(reader);
                s.read[cell].clear();
                s.written[cell] = {stream.number, stream.done, operation.name};
            } else {
                s.read[cell][stream.number] = {stream.number, stream.done, operation.name};
            }
        }
}

void merge(Clocks& into, const Clocks& from) {
    for (const auto& [queue, clock] : from) into[queue] = std::max(into[queue], clock);
}

bool ready(const Stream& stream) {
    if (stream.queue.empty()) return false;
    const Operation& next = stream.queue.front();
    return !next.wait || next.wait->done;
}

void run_one(Stream& stream) {
    Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    merge(stream.known, operation.known);
    stream.known[stream.number] = ++stream.done;
    if (operation.wait) merge(stream.known, operation.wait->known);
    note(stream, operation);
    if (operation.run) operation.run();
    if (operation.record) {
        operation.record->done = true;
        operation.record->known = stream.known;
    }
}

// Runs some of what could run, of any queue.
void progress(int most) {
    State& s = state();
    for (int i = 0; i < most; i++) {
        std::vector<Stream*> able;
        for (auto& stream : s.streams)
            if (ready(*stream)) able.push_back(stream.get());
        if (able.empty()) return;
        run_one(*able[s.random() % able.size()]);
    }
}

Stream& stream_of(void* handle) { return handle ? *static_cast<Stream*>(handle) : *state().streams.front(); }

void queue(void* handle, Operation operation) {
    State& s = state();
    if (s.idle) return;
    operation.known = s.host;
    Stream& stream = stream_of(handle);
    stream.queue.push_back(std::move(operation));
    if (s.eager)
        while (ready(stream)) run_one(stream);
}

bool finish(const std::function<bool()>& over) {
    for (int i = 0; i < 1000000 && !over(); i++) progress(1);
    return over();
}

// The start of every call: counts it, lets time pass, and fails where it was told to.
struct Call {
    explicit Call(const char* name) : lock(state().mutex) {
        State& s = state();
        if (s.streams.empty()) s.streams.push_back(std::make_unique<Stream>()), s.streams[0]->number = 1;
        s.calls[name]++;
        if (!s.eager && !s.idle) progress(int(s.random() % 4));
        if (s.failing == name && --s.failing_in == 0) error = s.failing_code;
    }
    std::lock_guard<std::mutex> lock;
    int error = 0;
};
#define BEGIN(name) \
    Call call(name); \
    if (call.error) return call.error

Access panel_access(const Panel& panel, int64_t rows, bool writes, bool quantized) {
    return quantized ? Access{panel.quants, size_t(rows) * panel.columns, writes} : Access{panel.values, size_t(rows) * panel.columns * 4, writes};
}

struct Kernel {
    std::string name;
    void (*run)(const void*, int64_t);
    int64_t bytes;
    bool quantized_up, quantized_down;
};

// What a kernel reads and writes, as its call says.
std::vector<Access> accesses(const Kernel& kernel, const void* at) {
    std::vector<Access> all;
    if (kernel.name == "gather") {
        const auto& call = *static_cast<const GatherCall*>(at);
        all.push_back({call.x, size_t(call.tokens) * call.width * (call.dtype ? 2 : 4), false});
        all.push_back(panel_access(call.panel, call.tokens, true, kernel.quantized_up));
    } else if (kernel.name == "inner" || kernel.name == "down") {
        const auto& call = *static_cast<const ExpertsCall*>(at);
        const Work& work = call.work;
        const int pairs = work.records ? work.begin[work.active] : work.few_begin[work.active];
        for (int i = 0; i < work.active; i++) all.push_back({work.records ? work.records[i] : work.few_records[i], 4096, false});
        all.push_back(panel_access(call.inner, pairs, kernel.name == "inner", kernel.quantized_down));
        for (int i = 0; kernel.name == "down" && i < pairs; i++)
            all.push_back({call.rows + int64_t(work.records ? work.pairs[i] : work.few_pairs[i]) * call.hidden, size_t(call.hidden) * 4, true});
    } else if (kernel.name == "join") {
        const auto& call = *static_cast<const JoinCall*>(at);
        for (int pair = 0; pair < call.tokens * call.top_k; pair++) {
            const bool on_cpu = call.places ? call.places[pair] : call.on_cpu[pair / 32] >> pair % 32 & 1;
            if (!on_cpu) all.push_back({call.rows + int64_t(pair) * call.hidden, size_t(call.hidden) * 4, false});
        }
        all.push_back({call.out, size_t(call.tokens) * call.hidden * (call.dtype ? 2 : 4), true});
    } else if (kernel.name == "post") {
        const auto& call = *static_cast<const PostCall*>(at);
        for (int i = 0; i < POSTED; i++)
            if (call.words[i]) {
                all.push_back({call.from[i], size_t(call.words[i]) * 4, false});
                all.push_back({call.to[i], size_t(call.words[i]) * 4, true});
            }
    }
    return all;
}

void post(const PostCall& call) {
    for (int i = 0; i < POSTED; i++) std::memcpy(call.to[i], call.from[i], size_t(call.words[i]) * 4);
    *call.flag = call.number;
}

void clear(const JoinCall& call) { std::memset(call.out, 0, size_t(call.tokens) * call.hidden * (call.dtype ? 2 : 4)); }

}  // namespace

extern "C" {

// For tests.
void fake_reset(unsigned seed, int eager, size_t total) {
    State& s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    for (auto& stream : s.streams) stream->queue.clear();  // of a test that failed
    s.random.seed(seed);
    s.eager = eager != 0;
    s.idle = false;
    s.total = total;
    s.written.clear();
    s.read.clear();
    s.races.clear();
    s.calls.clear();
    s.copied.clear();
    s.failing.clear();
}
// From now on nothing is done but counting, posting what the host waits for, and putting zeros where outputs go; "cubins" are not read.
void fake_idle() { state().idle = true; }
// The `nth` call of `name` from now on fails with `code`.
void fake_fail(const char* name, int nth, int code) {
    State& s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    s.failing = name;
    s.failing_in = nth;
    s.failing_code = code;
}
int fake_calls(const char* name) {
    State& s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (*name) return s.calls[name];
    int all = 0;
    for (const auto& [one, count] : s.calls) all += count;
    return all;
}
size_t fake_copied(const char* name) { return state().copied[name]; }
size_t fake_used() { return state().used; }
const char* fake_race(int i) {
    State& s = state();
    return i < int(s.races.size()) ? s.races[i].c_str() : nullptr;
}

int cuGetErrorName(int code, const char** name) {
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_UNKNOWN";
    return 0;
}
int cuGetErrorString(int code, const char** text) {
    *text = code == 2 ? "out of memory" : code == 700 ? "an illegal memory access was encountered" : "unknown error";
    return 0;
}
int cuInit(unsigned) { BEGIN("cuInit"); return 0; }
int cuDriverGetVersion(int* version) { BEGIN("cuDriverGetVersion"); *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { BEGIN("cuDeviceGetCount"); *count = 1; return 0; }
int cuDeviceGet(int* device, int number) { BEGIN("cuDeviceGet"); *device = number; return 0; }
int cuDeviceGetName(char* name, int most, int) { BEGIN("cuDeviceGetName"); std::snprintf(name, most, "a stand-in"); return 0; }
int cuDeviceGetAttribute(int* value, int which, int) { BEGIN("cuDeviceGetAttribute"); *value = which == 75 ? 8 : which == 76 ? 9 : 128; return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { BEGIN("cuDeviceTotalMem_v2"); *bytes = state().total; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { BEGIN("cuDevicePrimaryCtxRetain"); *context = &state(); return 0; }
int cuDevicePrimaryCtxRelease_v2(int) { BEGIN("cuDevicePrimaryCtxRelease_v2"); return 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuMemGetInfo_v2(size_t* free, size_t* all) {
    BEGIN("cuMemGetInfo_v2");
    *all = state().total;
    *free = state().total - state().used;
    return 0;
}
int cuModuleLoadData(void** module, const void* image) {
    BEGIN("cuModuleLoadData");
    if (state().idle) return *module = &state(), 0;
    *module = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
    return *module ? 0 : 300;
}
int cuModuleUnload(void*) { BEGIN("cuModuleUnload"); return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    BEGIN("cuModuleGetFunction");
    if (state().idle) return *function = new Kernel{name, nullptr, 0, false, false}, 0;
    const auto run = reinterpret_cast<void (*)(const void*, int64_t)>(dlsym(module, (std::string("run_") + name).c_str()));
    const auto bytes = reinterpret_cast<int64_t (*)()>(dlsym(module, (std::string("bytes_") + name).c_str()));
    if (!run || !bytes) return 500;
    const auto flag = [&](const char* which) {  // experts' modules have them
        const auto* at = static_cast<const int*>(dlsym(module, which));
        return at && *at;
    };
    *function = new Kernel{name, run, bytes(), flag("quantized_up"), flag("quantized_down")};
    return 0;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned, void* stream,
                   void** parameters, void**) {
    BEGIN("cuLaunchKernel");
    const Kernel& kernel = *static_cast<Kernel*>(function);
    if (state().idle) {
        if (kernel.name == "post") post(*static_cast<const PostCall*>(parameters[0]));
        if (kernel.name == "join") clear(*static_cast<const JoinCall*>(parameters[0]));
        return 0;
    }
    const auto* bytes = static_cast<const char*>(parameters[0]);
    auto copy = std::make_shared<std::vector<char>>(bytes, bytes + kernel.bytes);
    Operation operation;
    operation.name = kernel.name;
    if (!state().eager) operation.accesses = accesses(kernel, copy->data());
    const int64_t warps = int64_t(blocks) * (threads / 32);
    operation.run = [&kernel, copy, warps] { kernel.run(copy->data(), warps); };
    queue(stream, std::move(operation));
    return 0;
}
int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    BEGIN("cuMemAlloc_v2");
    State& s = state();
    if (s.used + bytes > s.total) return 2;
    void* memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!s.idle) std::memset(memory, 0xFE, bytes);
    s.memory[memory] = bytes;
    s.used += bytes;
    *at = reinterpret_cast<uint64_t>(memory);
    return 0;
}
int cuMemFree_v2(uint64_t at) {
    BEGIN("cuMemFree_v2");
    State& s = state();
    s.used -= s.memory[reinterpret_cast<void*>(at)];
    s.memory.erase(reinterpret_cast<void*>(at));
    std::free(reinterpret_cast<void*>(at));
    return 0;
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    BEGIN("cuMemHostAlloc");
    *at = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    std::memset(*at, 0xFD, bytes);
    return 0;
}
int cuMemFreeHost(void* at) { BEGIN("cuMemFreeHost"); std::free(at); return 0; }
int cuMemHostRegister_v2(void*, size_t, unsigned) { BEGIN("cuMemHostRegister_v2"); return 0; }
int cuMemHostUnregister(void*) { BEGIN("cuMemHostUnregister"); return 0; }
int cuMemHostGetDevicePointer_v2(uint64_t* at, void* host, unsigned) { BEGIN("cuMemHostGetDevicePointer_v2"); *at = reinterpret_cast<uint64_t>(host); return 0; }
static int copy(const char* name, void* to, const void* from, size_t bytes, void* stream) {
    state().copied[name] += bytes;
    if (state().idle) return 0;
    Operation operation;
    operation.name = name;
    operation.accesses = {{from, bytes, false}, {to, bytes, true}};
    operation.run = [=] { std::memcpy(to, from, bytes); };
    queue(stream, std::move(operation));
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    BEGIN("cuMemcpyHtoDAsync_v2");
    return copy("cuMemcpyHtoDAsync_v2", reinterpret_cast<void*>(to), from, bytes, stream);
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    BEGIN("cuMemcpyDtoHAsync_v2");
    return copy("cuMemcpyDtoHAsync_v2", to, reinterpret_cast<void*>(from), bytes, stream);
}
int cuStreamCreate(void** stream, unsigned) {
    BEGIN("cuStreamCreate");
    State& s = state();
    s.streams.push_back(std::make_unique<Stream>());
    s.streams.back()->number = int(s.streams.size());
    *stream = s.streams.back().get();
    return 0;
}
int cuStreamDestroy_v2(void* stream) {  // what is queued still runs
    BEGIN("cuStreamDestroy_v2");
    finish([&] { return stream_of(stream).queue.empty(); });
    return 0;
}
int cuStreamSynchronize(void* stream) {
    BEGIN("cuStreamSynchronize");
    if (!finish([&] { return stream_of(stream).queue.empty(); })) return 999;
    merge(state().host, stream_of(stream).known);
    return 0;
}
int cuStreamQuery(void* stream) {
    BEGIN("cuStreamQuery");
    progress(1);
    if (!stream_of(stream).queue.empty()) return 600;
    merge(state().host, stream_of(stream).known);
    return 0;
}
int cuStreamWaitEvent(void* stream, void* handle, unsigned) {
    BEGIN("cuStreamWaitEvent");
    auto* event = static_cast<Event*>(handle);
    if (!event->latest) return 0;
    Operation operation;
    operation.name = "wait";
    operation.wait = event->latest;
    queue(stream, std::move(operation));
    return 0;
}
int cuEventCreate(void** event, unsigned) { BEGIN("cuEventCreate"); *event = new Event; return 0; }
int cuEventDestroy_v2(void*) { BEGIN("cuEventDestroy_v2"); return 0; }  // kept: what is queued may name it
int cuEventRecord(void* handle, void* stream) {
    BEGIN("cuEventRecord");
    if (state().idle) return 0;
    auto* event = static_cast<Event*>(handle);
    Operation operation;
    operation.name = "record";
    operation.record = event->latest = std::make_shared<Point>();
    queue(stream, std::move(operation));
    return 0;
}
int cuEventQuery(void* handle) {
    BEGIN("cuEventQuery");
    auto* event = static_cast<Event*>(handle);
    progress(1);
    if (!event->latest) return 0;
    if (!event->latest->done) return 600;
    merge(state().host, event->latest->known);
    return 0;
}
int cuEventSynchronize(void* handle) {
    BEGIN("cuEventSynchronize");
    auto* event = static_cast<Event*>(handle);
    if (!event->latest) return 0;
    if (!finish([&] { return event->latest->done; })) return 999;
    merge(state().host, event->latest->known);
    return 0;
}

}  // extern "C"
