// Experts on disk, a part of which is in memory.
#include "disk/expert_cache.h"

#include "bind/bind.h"
#include "disk/reads/checksum.h"
#include "disk/failure.h"

namespace dali {

namespace {

// So that Ctrl-C ends a wait for a disk that has stalled.
void check_signals() {
    nb::gil_scoped_acquire locked;
    if (PyErr_CheckSignals()) throw nb::python_error();
}

nb::dict dict_of(const ExpertCache& cache) {
    const CacheCounters counters = cache.counters();
    const Reader::Spent spent = cache.spent();
    nb::dict all;
    all["hits"] = counters.hits;
    all["misses"] = counters.misses;
    all["reads"] = counters.reads;
    all["read_bytes"] = counters.bytes;
    all["wanted_bytes"] = counters.wanted_bytes;
    all["plain_reads"] = counters.plain_reads;
    all["plainly"] = !cache.direct();
    all["ahead_used"] = counters.ahead_used;
    all["ahead_late"] = counters.ahead_late;
    all["ahead_wasted"] = counters.ahead_wasted;
    all["stalled_seconds"] = counters.stalled;
    all["reading_seconds"] = spent.reading;
    all["busy_seconds"] = spent.busy;
    return all;
}

void bind_cache(nb::module_& m) {
    using Layers = std::vector<std::tuple<int64_t, size_t>>;  // offset of the first record, bytes of each
    nb::class_<ExpertCache>(m, "ExpertCache")
        .def("__init__",
             [](ExpertCache* self, const std::string& path, int experts, const Layers& layers, const std::vector<uint64_t>& checksums,
                uintptr_t memory, size_t slot_bytes, int slots, int depth, bool direct, nb::handle) {
                 Store store{path, experts, {}, checksums};
                 for (const auto& [offset, bytes] : layers) store.layers.push_back({offset, bytes});
                 new (self) ExpertCache(std::move(store), pointer<uint8_t>(memory), slot_bytes, slots, depth, direct);
             },
             nb::keep_alive<1, 11>())  // whoever owns the memory, into which threads read until the cache has gone
        .def("note", &ExpertCache::note)
        .def("holds", &ExpertCache::holds)
        .def("room", &ExpertCache::room)
        .def("grow", &ExpertCache::grow)
        .def("rest", &ExpertCache::rest)
        .def_prop_ro("looks_ahead", &ExpertCache::looks_ahead)
        .def_prop_ro("slots", &ExpertCache::slots)
        .def_prop_ro("held", &ExpertCache::held)
        .def_prop_ro("direct", &ExpertCache::direct)
        .def_prop_ro("reads_past", &ExpertCache::reads_past)
        .def("read_past", &ExpertCache::read_past)
        .def_prop_ro("compares", &ExpertCache::compares)
        .def("decoded", [](const ExpertCache& self) {
            const ExpertCache::Decoded all = self.decoded();
            return std::make_tuple(all.seconds, all.waited, all.wanted);
        })
        .def("counters", &dict_of);
    nb::class_<ExpertCache::Lease>(m, "ExpertLease")
        .def("__init__",
             [](ExpertCache::Lease* self, ExpertCache& cache, int layer, const std::vector<int>& experts, bool noted) {
                 if (noted) new (self) ExpertCache::Lease(cache, layer, experts, ExpertCache::Lease::Unnoted());
                 else new (self) ExpertCache::Lease(cache, layer, experts);
             },
             nb::arg("cache"), nb::arg("layer"), nb::arg("experts"), nb::arg("noted") = false, nb::keep_alive<1, 2>())
        // Waits until all are there -> the slot of each.
        .def("hold", [](ExpertCache::Lease& self, int experts) {
            nb::gil_scoped_release unlocked;
            while (int(self.next(true).size()) < experts) {
            }
            std::vector<int> slots;
            for (int place = 0; place < experts; place++) slots.push_back(self.slot(place));
            return slots;
        })
        // The places that are told, until the next call.
        .def("next", [](ExpertCache::Lease& self) { return self.next(); }, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace

void bind_disk(nb::module_& m) {
    ExpertCache::on_waiting = check_signals;
    nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
        try {
            std::rethrow_exception(thrown);
        } catch (const StoreFailure& failure) {
            const nb::object kind = nb::module_::import_("dali.errors").attr("StoreError");
            const nb::object error = kind(failure.path, failure.what());
            PyErr_SetObject(kind.ptr(), error.ptr());
        }
    });
    m.def("xxh3", [](uintptr_t data, size_t bytes) {
        nb::gil_scoped_release unlocked;
        return xxh3(pointer<const uint8_t>(data), bytes);
    });
    nb::class_<Rates>(m, "Rates")
        .def(nb::init<std::vector<double>, int>())
        .def("note", &Rates::note)
        .def("worth", &Rates::worth);
    nb::class_<Trial>(m, "Trial").def(nb::init<>()).def("step", &Trial::step).def_prop_ro("on", &Trial::on);
    m.def("ranked", [](const std::vector<int64_t>& ids, int top_k, const std::vector<bool>& there) {
        return ranked(ids.data(), int(ids.size()) / top_k, top_k, there);
    });
    nb::class_<ReadAhead>(m, "ReadAhead")
        .def(nb::init<int>())
        .def("choose", &ReadAhead::choose)
        .def("settle", &ReadAhead::settle);
    bind_cache(m);
}

}  // namespace dali
