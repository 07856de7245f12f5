// The GPU: its driver, kernels and the MoE layers over it and the CPU.
#include <nanobind/stl/pair.h>

#include "bind/bind.h"
#include "bind/plan/step_plan.h"
#include "bind/gpu/outcome.h"
#include "gpu/layers.h"

namespace dali {

void bind_gpu(nb::module_& m) {
    nb::exception<gpu::Failure>(m, "GpuFailure", PyExc_RuntimeError);
    nb::class_<gpu::Device>(m, "GpuDevice")
        .def(nb::init<const std::string&, int>(), nb::arg("library"), nb::arg("number"), nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("name", &gpu::Device::name)
        .def_prop_ro("sm", &gpu::Device::sm)
        .def_prop_ro("driver_version", [](const gpu::Device& self) {
            int version = 0;
            DALI_CUDA(self.driver, driver_version, &version);
            return version;
        })
        .def("memory", &gpu::Device::memory);
    nb::class_<gpu::Module>(m, "GpuModule")
        .def("__init__", [](gpu::Module* self, const gpu::Device& device, const nb::bytes& cubin) {
            device.enter();
            new (self) gpu::Module(device, cubin.c_str());
        }, nb::keep_alive<1, 2>())
        // A kernel with the call it takes, as bytes: for checking it by itself.
        .def("launch", [](const gpu::Module& self, const std::string& name, const nb::bytes& call, int64_t warps, uintptr_t stream) {
            self.launch(name.c_str(), call.c_str(), warps, pointer<void>(stream));
        });
    nb::class_<gpu::Registered>(m, "GpuRegistered");
    m.def("gpu_register", [](const gpu::Device& device, uintptr_t memory, size_t bytes) {
        device.enter();
        return gpu::register_host(device, pointer<void>(memory), bytes);
    }, nb::keep_alive<0, 1>(), nb::call_guard<nb::gil_scoped_release>());

    const auto fetches_of = [](const std::vector<FetchParts>& all) {
        std::vector<Fetch> fetches;
        for (const auto& [layer, expert, slot] : all) fetches.push_back({layer, expert, slot});
        return fetches;
    };
    nb::class_<gpu::Layers>(m, "GpuLayers")
        .def("__init__", [](gpu::Layers* self, const gpu::Device& device, const gpu::Module& common, int experts, int top_k, int hidden,
                            int most_tokens, int most_ahead, Dtype dtype, Dtype weights_dtype, size_t slot_bytes, int slots) {
            device.enter();
            new (self) gpu::Layers(device, {experts, top_k, hidden, most_tokens, most_ahead, dtype, weights_dtype, slot_bytes, slots}, common);
        }, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
        .def("add", [](gpu::Layers& self, const ExpertLayout& layout, const ExpertRecords& records, const gpu::Module& few,
                       const gpu::Module& many) {
            self.add(layout, records.experts, few, many);
        }, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>())
        .def("place", [=](gpu::Layers& self, const std::vector<FetchParts>& fetches) {
            nb::gil_scoped_release unlocked;
            self.place(fetches_of(fetches));
        })
        .def("begin", [](gpu::Layers& self, int layer, int tokens, uint64_t x, uint64_t ids, uint64_t weights, uint64_t ahead, int ahead_count,
                         uintptr_t stream) {
            nb::gil_scoped_release unlocked;
            self.begin(layer, {tokens, x, ids, weights, ahead, ahead_count}, pointer<void>(stream));
        })
        // The ids, and those ahead, [count] and [ahead_count].
        .def("routing", [](gpu::Layers& self, int count, int ahead_count) {
            const int64_t* ids;
            {
                nb::gil_scoped_release unlocked;
                ids = self.routing();
            }
            return std::make_pair(std::vector<int64_t>(ids, ids + count), std::vector<int64_t>(self.ahead(), self.ahead() + ahead_count));
        })
        .def("execute", [=](gpu::Layers& self, const std::vector<int>& cpu, const std::vector<LaunchParts>& launches,
                            const std::vector<FetchParts>& fetches, uint64_t out) {
            nb::gil_scoped_release unlocked;
            StepPlan plan{cpu, {}, fetches_of(fetches)};
            for (const auto& [experts, slots, fetch] : launches) plan.launches.push_back({experts, slots, fetch});
            return self.execute(plan, out);
        })
        // A layer's step in one call, begin() and finish(): as finish() returns.
        .def("step", [](gpu::Layers& self, Planner& planner, int layer, int tokens, uint64_t x, uint64_t ids, uint64_t weights, uint64_t ahead,
                        int ahead_count, uintptr_t stream, int ahead_layer, double ahead_seconds, uint64_t out) {
            nb::gil_scoped_release unlocked;
            self.begin(layer, {tokens, x, ids, weights, ahead, ahead_count}, pointer<void>(stream));
            return outcome_of(self.finish(planner, ahead_layer, ahead_seconds, out));
        })
        // What follows begin(); -> counts as Planner.plan() has them, then seconds as StepOutcome has them.
        .def("finish", [](gpu::Layers& self, Planner& planner, int ahead_layer, double ahead_seconds, uint64_t out) {
            nb::gil_scoped_release unlocked;
            return outcome_of(self.finish(planner, ahead_layer, ahead_seconds, out));
        })
        // Where begin()'s x and weights lie on the host once routing() has returned.
        .def_prop_ro("x", [](const gpu::Layers& self) { return reinterpret_cast<uintptr_t>(self.x()); })
        .def_prop_ro("weights", [](const gpu::Layers& self) { return reinterpret_cast<uintptr_t>(self.weights()); })
        .def_prop_ro("copy_stream", [](const gpu::Layers& self) { return reinterpret_cast<uintptr_t>(self.copy_stream()); })  // for measuring
        // spans(): (what, layer, experts, begin, end) of all that is over and was not given yet, by the host's clock in seconds.
        .def("watch", &gpu::Layers::watch, nb::call_guard<nb::gil_scoped_release>())
        .def("spans", [](gpu::Layers& self, bool wait) {
            constexpr const char* NAMES[] = {"dense", "experts", "copy", "cpu", "join"};
            std::vector<gpu::LaneSpan> spans;
            {
                nb::gil_scoped_release unlocked;
                spans = self.spans(wait);
            }
            std::vector<std::tuple<std::string, int, std::vector<int>, double, double>> all;
            for (const gpu::LaneSpan& span : spans) all.emplace_back(NAMES[int(span.work)], span.layer, span.experts, span.begin, span.end);
            return all;
        })
        // Copies that were measured, and their seconds, since last asked.
        .def("timed", &gpu::Layers::timed)
        .def("landed", &gpu::Layers::landed, nb::call_guard<nb::gil_scoped_release>())
        .def("recover", &gpu::Layers::recover, nb::call_guard<nb::gil_scoped_release>());
    bind_gpu_model(m);
}

}  // namespace dali
