// The threads that compute, and where their time goes.
#include <nanobind/stl/map.h>

#include <map>

#include "bind/bind.h"
#include "threads/spent.h"
#include "threads/measure.h"
#include "threads/pool.h"

namespace dali {

void bind_threads(nb::module_& m) {
    m.def("set_threads", [](int threads, bool pinned) { Pool::instance().set_threads(threads, pinned); });
    m.def("threads", [] { return Pool::instance().threads(); });
    m.def("read_seconds", [](uintptr_t from, size_t bytes) {
        nb::gil_scoped_release unlocked;
        return read_seconds(pointer<const void>(from), bytes);
    });
    // Seconds spent in each kind of kernel since the process began, as seen by its callers.
    m.def("seconds", [] {
        const char* names[PARTS] = {"experts", "dense", "attention", "norm", "router"};
        std::map<std::string, double> spent;
        for (int part = 0; part < PARTS; part++) spent[names[part]] = double(nanoseconds(Part(part))) * 1e-9;
        return spent;
    });
}

}  // namespace dali
