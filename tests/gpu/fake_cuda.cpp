// A stand-in for libcuda, over host memory: what is queued runs at times a seed chooses, as adversely as events allow; vector clocks
// tell when two accesses of which one writes are ordered by nothing; graphs are captured of one stream and replayed in its order; any
// call can be made to fail. A "cubin" is the path of a library
// of kernels made for the CPU (tests/kernels/gpu/shimmed.cpp).
#include <array>
#include <algorithm>
#include <chrono>
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
#include <thread>
#include <vector>

#include <dlfcn.h>
#include <sys/mman.h>

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
    std::chrono::steady_clock::time_point at;  // when it came
    Clocks known;
};

struct Event {
    std::shared_ptr<Point> latest;
    int capture = 0;  // in which it was recorded last
    bool timed = true;
};

struct Operation {
    std::function<void()> run;
    std::vector<Access> accesses;
    std::shared_ptr<Point> record, wait;
    Clocks known;  // by the host, when it was queued
    std::string name;
};

// What a stream is told while it is captured.
struct Capture {
    int number;
    std::thread::id thread;
    bool lost = false;  // something illegal was asked for
    std::vector<Operation> operations;
};

struct Stream {
    std::unique_ptr<Capture> capture;
    bool blocking = true;  // it and stream 0 wait for each other
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
    bool idle = false;   // nothing is computed, all results are zeros, but a step's routing: for measuring the host's own time
    std::vector<std::array<const int64_t*, 2>> routing;  // of idle posts in turn: ids, and those ahead
    size_t posts = 0, each = 0;                           // so far; ids of a post, at most: what is larger is no routing
    std::vector<std::unique_ptr<Stream>> streams;
    std::vector<Stream*> capturing;
    Clocks host;
    std::map<const void*, size_t> memory;  // bytes of the device's and of page-locked memory
    size_t total = size_t(1) << 30, used = 0;
    std::map<uintptr_t, Seen> written;               // by 64-byte cell
    std::map<uintptr_t, std::map<int, Seen>> read;
    std::vector<std::string> races;
    std::map<std::string, int> calls;
    std::map<std::string, size_t> copied;  // bytes, by call
    int version = 13000, sm = 89;
    int held = 0;  // that was made and not given back: memory, streams, events, modules, graphs, contexts
    int captures = 0;
    float elapsed = 0;  // between any two events, milliseconds; 0: as it was
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
        operation.record->at = std::chrono::steady_clock::now();
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

// As cuda.h numbers them.
constexpr int INVALID_HANDLE = 400, ILLEGAL_STATE = 401, UNSUPPORTED = 900, INVALIDATED = 901, ISOLATION = 905, IMPLICIT = 906, CAPTURED_EVENT = 907, WRONG_THREAD = 908;

// An illegal request: what is being captured is lost.
int lose(Stream& stream, int code) {
    stream.capture->lost = true;
    return code;
}

// What waits, allocates or frees is illegal on a thread that captures (thread-local mode).
int unsafe() {
    for (Stream* stream : state().capturing)
        if (stream->capture->thread == std::this_thread::get_id()) return lose(*stream, UNSUPPORTED);
    return 0;
}

// A stream that cannot be queued in now; stream 0 cannot while one is captured that it waits for.
int busy(Stream& stream) {
    if (stream.capture && stream.capture->lost) return INVALIDATED;
    if (stream.number == 1)
        for (Stream* other : state().capturing)
            if (other->blocking) return lose(*other, IMPLICIT);
    return 0;
}

// A stream that is captured cannot be waited for, on no thread.
int awaited(Stream& stream) {
    if (stream.capture) return lose(stream, UNSUPPORTED);
    return busy(stream);
}

int queue(void* handle, Operation operation) {
    State& s = state();
    Stream& stream = stream_of(handle);
    if (const int code = busy(stream)) return code;
    if (stream.capture) return stream.capture->operations.push_back(std::move(operation)), 0;
    if (s.idle) {
        if (operation.run) operation.run();
        return 0;
    }
    operation.known = s.host;
    stream.queue.push_back(std::move(operation));
    if (s.eager)
        while (ready(stream)) run_one(stream);
    return 0;
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
#define BEGIN_UNSAFE(name) \
    BEGIN(name); \
    if (const int code = unsafe()) return code

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
        if (kernel.name == "inner") all.push_back(panel_access(call.outer, 1, false, kernel.quantized_up));
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
    } else if (kernel.name == "add_norm") {
        const auto& call = *static_cast<const AddNormCall*>(at);
        const size_t bytes = size_t(call.rows) * call.width * (call.dtype ? 2 : 4);
        if (call.part && !call.from) all.push_back({call.part, bytes, false});
        if (call.sum) all.push_back({call.sum, bytes, true});
        if (call.out) all.push_back({call.out, bytes, true});
        if (call.panel.quants) all.push_back(panel_access(call.panel, call.rows, true, true));
        if (call.panel.values) all.push_back(panel_access(call.panel, call.rows, true, false));
    } else if (kernel.name == "post") {
        const auto& call = *static_cast<const PostCall*>(at);
        for (int i = 0; i < POSTED; i++)
            if (call.words[i]) {
                all.push_back({call.from[i], size_t(call.words[i]) * 4, false});
                all.push_back({call.to[i], size_t(call.words[i]) * 4, true});
            }
        if (call.base) all.push_back({call.base, sizeof *call.base, false});
    }
    return all;
}

void post(const PostCall& call) {
    State& s = state();
    const bool routing = s.idle && !s.routing.empty() && size_t(call.words[0]) <= 2 * s.each;
    for (int i = 0; i < POSTED; i++) {
        const int64_t* drawn = routing && i < 2 ? s.routing[s.posts % s.routing.size()][i] : nullptr;
        if (call.words[i]) std::memcpy(call.to[i], drawn ? drawn : call.from[i], size_t(call.words[i]) * 4);
    }
    s.posts += routing;
    *call.flag = call.number + (call.base ? *call.base : 0);
}

std::pair<const char*, const char*> error(int code) {
    switch (code) {
    case 2: return {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"};
    case ILLEGAL_STATE: return {"CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"};
    case 700: return {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"};
    case UNSUPPORTED: return {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"};
    case INVALIDATED: return {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"};
    default: return {"CUDA_ERROR_UNKNOWN", "unknown error"};
    }
}

// What an idle GPU leaves in memory that may be another's, as torch's: its own has zeros from the start.
void clear(const JoinCall& call) { std::memset(call.out, 0, size_t(call.tokens) * call.hidden * (call.dtype ? 2 : 4)); }
void clear(const LinearCall& call) {
    for (int i = 0; i < call.count; i++)
        std::memset(call.products[i].out, 0, size_t(call.tokens) * call.products[i].matrix.rows * (call.dtype ? 2 : 4));
}

// Whole pages, which nobody had before and nobody can read once they are given back. Until they are written they hold NaN in every type of
// floats, and -1 in those of integers, so that whoever reads them gives himself away; or zeros.
void* take_pages(size_t bytes, bool zeros) {
    void* memory = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    if (!zeros) std::memset(memory, 0xFF, bytes);
    return memory;
}
void give_pages_back(void* memory) {
    const auto at = state().memory.find(memory);
    munmap(memory, std::max<size_t>(at->second, 1));
    state().memory.erase(at);
}

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
    s.version = 13000, s.sm = 89;
    s.elapsed = 0;
    for (Stream* stream : s.capturing) stream->capture.reset();
    s.capturing.clear();
}
// From now on nothing is done but counting, posting what the host waits for, and putting zeros where outputs go; memory is zeros, and
// "cubins" are not read.
void fake_idle() { state().idle = true; }
// What lies between any two events from now on.
void fake_elapse(float milliseconds) { state().elapsed = milliseconds; }
// What it says of itself from now on.
void fake_describe(int version, int sm) { state().version = version, state().sm = sm; }
// The ids, and the ids ahead, that posts in turn say from now on where nothing is done; the caller keeps them.
void fake_route(const int64_t* ids, const int64_t* ahead, size_t each, size_t posts) {
    State& s = state();
    s.routing.clear();
    s.posts = 0, s.each = each;
    for (size_t i = 0; i < posts; i++) s.routing.push_back({ids + i * each, ahead + i * each});
}
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
int fake_held() { return state().held; }
const char* fake_race(int i) {
    State& s = state();
    return i < int(s.races.size()) ? s.races[i].c_str() : nullptr;
}

int cuGetErrorName(int code, const char** name) {
    *name = error(code).first;
    return 0;
}
int cuGetErrorString(int code, const char** text) {
    *text = error(code).second;
    return 0;
}
int cuInit(unsigned) { BEGIN("cuInit"); return 0; }
int cuDriverGetVersion(int* version) { BEGIN("cuDriverGetVersion"); *version = state().version; return 0; }
int cuDeviceGetCount(int* count) { BEGIN("cuDeviceGetCount"); *count = 1; return 0; }
int cuDeviceGet(int* device, int number) { BEGIN("cuDeviceGet"); *device = number; return 0; }
int cuDeviceGetName(char* name, int most, int) { BEGIN("cuDeviceGetName"); std::snprintf(name, most, "a stand-in"); return 0; }
int cuDeviceGetAttribute(int* value, int which, int) { BEGIN("cuDeviceGetAttribute"); *value = which == 75 ? state().sm / 10 : which == 76 ? state().sm % 10 : 128; return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { BEGIN("cuDeviceTotalMem_v2"); *bytes = state().total; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { BEGIN("cuDevicePrimaryCtxRetain"); state().held++; *context = &state(); return 0; }
int cuDevicePrimaryCtxRelease_v2(int) { BEGIN("cuDevicePrimaryCtxRelease_v2"); state().held--; return 0; }
int cuCtxSetCurrent(void*) {  // asked at every turn, and too cheap to count
    State& s = state();
    return s.failing == "cuCtxSetCurrent" && --s.failing_in == 0 ? s.failing_code : 0;
}
int cuMemGetInfo_v2(size_t* free, size_t* all) {
    BEGIN("cuMemGetInfo_v2");
    *all = state().total;
    *free = state().total - state().used;
    return 0;
}
int cuModuleLoadData(void** module, const void* image) {
    BEGIN_UNSAFE("cuModuleLoadData");
    *module = state().idle ? &state() : dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
    if (!*module) return 300;
    state().held++;
    return 0;
}
int cuModuleUnload(void*) { BEGIN_UNSAFE("cuModuleUnload"); state().held--; return 0; }
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
        Operation operation;
        if (kernel.name == "post") operation.run = [call = *static_cast<const PostCall*>(parameters[0])] { post(call); };
        if (kernel.name == "join") operation.run = [call = *static_cast<const JoinCall*>(parameters[0])] { clear(call); };
        if (kernel.name == "linear") operation.run = [call = *static_cast<const LinearCall*>(parameters[0])] { clear(call); };
        return queue(stream, std::move(operation));
    }
    const auto* bytes = static_cast<const char*>(parameters[0]);
    auto copy = std::make_shared<std::vector<char>>(bytes, bytes + kernel.bytes);
    Operation operation;
    operation.name = kernel.name;
    if (!state().eager) operation.accesses = accesses(kernel, copy->data());
    const int64_t warps = int64_t(blocks) * (threads / 32);
    operation.run = [&kernel, copy, warps] { kernel.run(copy->data(), warps); };
    return queue(stream, std::move(operation));
}
int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    BEGIN_UNSAFE("cuMemAlloc_v2");
    State& s = state();
    if (s.used + bytes > s.total) return 2;
    void* memory = take_pages(bytes, s.idle);
    s.memory[memory] = bytes;
    s.used += bytes;
    s.held++;
    *at = reinterpret_cast<uint64_t>(memory);
    return 0;
}
int cuMemFree_v2(uint64_t at) {
    BEGIN_UNSAFE("cuMemFree_v2");
    State& s = state();
    s.used -= s.memory[reinterpret_cast<void*>(at)];
    s.held--;
    give_pages_back(reinterpret_cast<void*>(at));
    return 0;
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    BEGIN_UNSAFE("cuMemHostAlloc");
    State& s = state();
    *at = take_pages(bytes, s.idle);
    s.memory[*at] = bytes;
    s.held++;
    return 0;
}
int cuMemFreeHost(void* at) { BEGIN_UNSAFE("cuMemFreeHost"); state().held--; give_pages_back(at); return 0; }
int cuMemHostRegister_v2(void*, size_t, unsigned) { BEGIN_UNSAFE("cuMemHostRegister_v2"); state().held++; return 0; }
int cuMemHostUnregister(void*) { BEGIN_UNSAFE("cuMemHostUnregister"); state().held--; return 0; }
int cuMemHostGetDevicePointer_v2(uint64_t* at, void* host, unsigned) { BEGIN("cuMemHostGetDevicePointer_v2"); *at = reinterpret_cast<uint64_t>(host); return 0; }
constexpr size_t TABLES = 1 << 20;  // bytes: what is less is no expert, and tells kernels something
static int copy(const char* name, void* to, const void* from, size_t bytes, void* stream) {
    state().copied[name] += bytes;
    Operation operation;
    if (state().idle) {
        if (bytes < TABLES) operation.run = [=] { std::memcpy(to, from, bytes); };
        return queue(stream, std::move(operation));
    }
    operation.name = name;
    operation.accesses = {{from, bytes, false}, {to, bytes, true}};
    operation.run = [=] { std::memcpy(to, from, bytes); };
    return queue(stream, std::move(operation));
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    BEGIN("cuMemcpyHtoDAsync_v2");
    return copy("cuMemcpyHtoDAsync_v2", reinterpret_cast<void*>(to), from, bytes, stream);
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    BEGIN("cuMemcpyDtoHAsync_v2");
    return copy("cuMemcpyDtoHAsync_v2", to, reinterpret_cast<void*>(from), bytes, stream);
}
int cuStreamCreate(void** stream, unsigned flags) {
    BEGIN("cuStreamCreate");
    State& s = state();
    s.held++;
    s.streams.push_back(std::make_unique<Stream>());
    s.streams.back()->number = int(s.streams.size());
    s.streams.back()->blocking = !(flags & 1);
    *stream = s.streams.back().get();
    return 0;
}
int cuStreamDestroy_v2(void* stream) {  // what is queued still runs
    BEGIN_UNSAFE("cuStreamDestroy_v2");
    state().held--;
    finish([&] { return stream_of(stream).queue.empty(); });
    return 0;
}
int cuStreamSynchronize(void* stream) {
    BEGIN_UNSAFE("cuStreamSynchronize");
    if (const int code = awaited(stream_of(stream))) return code;
    if (!finish([&] { return stream_of(stream).queue.empty(); })) return 999;
    merge(state().host, stream_of(stream).known);
    return 0;
}
int cuStreamQuery(void* stream) {
    BEGIN_UNSAFE("cuStreamQuery");
    if (const int code = awaited(stream_of(stream))) return code;
    progress(1);
    if (!stream_of(stream).queue.empty()) return 600;
    merge(state().host, stream_of(stream).known);
    return 0;
}
int cuStreamWaitEvent(void* handle, void* waited, unsigned) {
    BEGIN("cuStreamWaitEvent");
    auto* event = static_cast<Event*>(waited);
    Stream& stream = stream_of(handle);
    if (stream.capture && stream.capture->lost) return INVALIDATED;
    // Of events of its own capture a stream waits for anyhow. In reality an event also takes another stream into the capture.
    if (event->capture) return stream.capture && stream.capture->number == event->capture ? 0 : ISOLATION;
    if (stream.capture) return lose(stream, ISOLATION);
    if (!event->latest) return 0;
    Operation operation;
    operation.name = "wait";
    operation.wait = event->latest;
    return queue(handle, std::move(operation));
}
int cuEventCreate(void** event, unsigned flags) {
    BEGIN("cuEventCreate");
    state().held++;
    auto* one = new Event;
    one->timed = !(flags & 2);
    *event = one;
    return 0;
}
int cuEventDestroy_v2(void*) { BEGIN("cuEventDestroy_v2"); state().held--; return 0; }  // kept: what is queued may name it
int cuEventRecord(void* recorded, void* handle) {
    BEGIN("cuEventRecord");
    auto* event = static_cast<Event*>(recorded);
    Stream& stream = stream_of(handle);
    if (stream.capture && stream.capture->lost) return INVALIDATED;
    event->capture = stream.capture ? stream.capture->number : 0;
    if (event->capture || state().idle) return 0;
    Operation operation;
    operation.name = "record";
    operation.record = event->latest = std::make_shared<Point>();
    return queue(handle, std::move(operation));
}
int cuEventQuery(void* handle) {
    BEGIN_UNSAFE("cuEventQuery");
    auto* event = static_cast<Event*>(handle);
    if (event->capture) return CAPTURED_EVENT;
    progress(1);
    if (!event->latest) return 0;
    if (!event->latest->done) return 600;
    merge(state().host, event->latest->known);
    return 0;
}
int cuEventSynchronize(void* handle) {
    BEGIN_UNSAFE("cuEventSynchronize");
    auto* event = static_cast<Event*>(handle);
    if (event->capture) return CAPTURED_EVENT;
    if (!event->latest) return 0;
    if (!finish([&] { return event->latest->done; })) return 999;
    merge(state().host, event->latest->known);
    return 0;
}
int cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    BEGIN_UNSAFE("cuEventElapsedTime");
    const auto *begin = static_cast<Event*>(from), *end = static_cast<Event*>(to);
    if (state().idle) return *milliseconds = 0, 0;
    if (!begin->timed || !end->timed || !begin->latest || !end->latest) return INVALID_HANDLE;
    progress(1);
    if (!begin->latest->done || !end->latest->done) return 600;
    if (state().elapsed > 0) return *milliseconds = state().elapsed, 0;
    *milliseconds = std::chrono::duration<float, std::milli>(end->latest->at - begin->latest->at).count();
    return 0;
}
int cuStreamBeginCapture_v2(void* handle, int mode) {
    BEGIN("cuStreamBeginCapture_v2");
    Stream& stream = stream_of(handle);
    if (stream.number == 1 || mode != 1) return UNSUPPORTED;  // stream 0; other modes than thread-local stand for nothing here
    if (stream.capture) return lose(stream, ILLEGAL_STATE);
    stream.capture.reset(new Capture{++state().captures, std::this_thread::get_id(), false, {}});
    state().capturing.push_back(&stream);
    return 0;
}
// A call that is made to fail ends the capture all the same.
int cuStreamEndCapture(void* handle, void** graph) {
    Call call("cuStreamEndCapture");
    Stream& stream = stream_of(handle);
    *graph = nullptr;
    if (!stream.capture) return ILLEGAL_STATE;
    if (stream.capture->thread != std::this_thread::get_id()) return lose(stream, WRONG_THREAD);
    const std::unique_ptr<Capture> capture = std::move(stream.capture);
    State& s = state();
    s.capturing.erase(std::find(s.capturing.begin(), s.capturing.end(), &stream));
    if (call.error) return call.error;
    if (capture->lost) return INVALIDATED;
    s.held++;
    *graph = new std::vector<Operation>(std::move(capture->operations));
    return 0;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    BEGIN_UNSAFE("cuGraphInstantiateWithFlags");
    state().held++;
    *executable = new std::vector<Operation>(*static_cast<std::vector<Operation>*>(graph));
    return 0;
}
int cuGraphLaunch(void* executable, void* stream) {
    BEGIN("cuGraphLaunch");
    if (stream_of(stream).capture) return lose(stream_of(stream), UNSUPPORTED);  // in reality, a graph within the graph
    for (const Operation& operation : *static_cast<std::vector<Operation>*>(executable))
        if (const int code = queue(stream, operation)) return code;
    return 0;
}
static int destroy(void* graph) {
    state().held--;
    delete static_cast<std::vector<Operation>*>(graph);
    return 0;
}
int cuGraphExecDestroy(void* executable) { BEGIN("cuGraphExecDestroy"); return destroy(executable); }
int cuGraphDestroy(void* graph) { BEGIN("cuGraphDestroy"); return destroy(graph); }

}  // extern "C"
