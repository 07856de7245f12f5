// Graphs (src/native/gpu/graph.h) for tests: copies and an exception are captured, and launched.
#include <cstring>
#include <memory>
#include <stdexcept>

#include "gpu/graph.h"

using namespace dali::gpu;

namespace {

struct Test {
    explicit Test(const char* library) : device(library, 0), own(create_stream(device)), other(create_stream(device)) {}
    Device device;
    StreamHandle own, other;
    Graph graph;
    char said[256] = {};
};

template <class F>
const char* said(Test& test, F&& call) {
    test.said[0] = 0;
    try {
        call();
    } catch (const std::exception& error) {
        std::strncpy(test.said, error.what(), sizeof test.said - 1);
    }
    return test.said;
}

}  // namespace

extern "C" {

void* open_test(const char* library) { return new Test(library); }
void close_test(Test* test) { delete test; }
// Captures two copies, first -> second -> third; `trouble` is asked for between them: 1 an exception, 2 memory, 3 a wait.
const char* capture_copies(Test* test, bool in_own, void* first, Address second, void* third, size_t bytes, int trouble) {
    return said(*test, [&] {
        const Device& device = test->device;
        const Handle stream = in_own ? test->own.get() : nullptr;
        test->graph = capture(device, stream, [&] {
            DALI_CUDA(device.driver, copy_up, second, first, bytes, stream);
            if (trouble == 1) throw std::runtime_error("the work to capture is wrong");
            if (trouble == 2) allocate(device, 64);
            if (trouble == 3) DALI_CUDA(device.driver, finish_stream, stream);
            DALI_CUDA(device.driver, copy_down, third, second, bytes, stream);
        });
    });
}
const char* launch_graph(Test* test, Handle stream) { return said(*test, [&] { test->graph.launch(stream); }); }
const char* copy(Test* test, void* first, Address second, size_t bytes) {
    return said(*test, [&] { DALI_CUDA(test->device.driver, copy_up, second, first, bytes, test->own.get()); });
}
const char* finish(Test* test, Handle stream) { return said(*test, [&] { DALI_CUDA(test->device.driver, finish_stream, stream); }); }
Handle own(Test* test) { return test->own.get(); }
Handle other(Test* test) { return test->other.get(); }

}  // extern "C"
