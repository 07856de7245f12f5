// Whole models over the GPU.
#include <nanobind/stl/pair.h>

#include "bind/bind.h"
#include "bind/plan/step_plan.h"
#include "bind/gpu/outcome.h"
#include "gpu/model.h"

namespace dali {

namespace {

// What a step takes: ids; (cos, sin) of each kind, of each row; of each layer runs as (a token as attend() has it, count, window or 0); the
// rows whose logits are wanted.
using Rotations = std::vector<std::vector<std::tuple<uintptr_t, uintptr_t>>>;
using RunParts = std::tuple<Token, int, int64_t>;

gpu::StepInput input_of(std::vector<int64_t> ids, const Rotations& rotations, const std::vector<std::vector<RunParts>>& runs,
                        std::vector<int> wanted) {
    gpu::StepInput input{std::move(ids), {}, {}, std::move(wanted)};
    for (const auto& kind : rotations) {
        auto& of = input.rotations.emplace_back();
        for (const auto& [cos, sin] : kind) of.push_back({pointer<const void>(cos), pointer<const void>(sin)});
    }
    for (const auto& layer : runs) {
        auto& of = input.runs.emplace_back();
        for (const auto& [token, count, window] : layer) of.push_back({decoding({token}).front(), count, window});
    }
    return input;
}

}  // namespace

void bind_gpu_model(nb::module_& m) {
    nb::class_<gpu::Model>(m, "GpuModel")
        // linears: (format, kernels for few rows, for many)
        .def("__init__", [](gpu::Model* self, const gpu::Device& device, const DecodingModel& model, const gpu::Module& common,
                            const std::vector<std::tuple<std::string, const gpu::Module*, const gpu::Module*>>& linears, int most_rows,
                            int64_t most_tokens) {
            std::vector<gpu::LinearModules> modules;
            for (const auto& [format, few, many] : linears) modules.push_back({format_of(format), few, many});
            device.enter();
            new (self) gpu::Model(device, model, common, modules, most_rows, most_tokens);
        }, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>())
        .def_prop_ro("bytes", &gpu::Model::bytes)
        .def_prop_ro("part", &gpu::Model::part)
        .def("put", &gpu::Model::put, nb::call_guard<nb::gil_scoped_release>())
        // foresight: of each MoE layer (distance, routers), or nothing
        .def("follow", [](gpu::Model& self, gpu::Layers& experts, const std::vector<std::tuple<int, std::vector<const Router*>>>& foresight) {
            std::vector<gpu::Foresight> all;
            for (const auto& [distance, routers] : foresight) all.push_back({distance, routers});
            nb::gil_scoped_release unlocked;
            self.follow(experts, all);
        }, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
        .def("foreseen", &gpu::Model::foreseen)
        // -> of each MoE layer as GpuLayers.finish()
        .def("step", [](gpu::Model& self, Planner& planner, std::vector<int64_t> ids, const Rotations& rotations,
                        const std::vector<std::vector<RunParts>>& runs, std::vector<int> wanted, uint64_t logits, uintptr_t stream) {
            const gpu::StepInput input = input_of(std::move(ids), rotations, runs, std::move(wanted));
            std::vector<gpu::StepOutcome> outcomes;
            {
                nb::gil_scoped_release unlocked;
                outcomes = self.step(planner, input, logits, pointer<void>(stream));
            }
            std::vector<decltype(outcome_of(outcomes.front()))> all;
            for (const gpu::StepOutcome& outcome : outcomes) all.push_back(outcome_of(outcome));
            return all;
        })
        .def("start", [](gpu::Model& self, std::vector<int64_t> ids, const Rotations& rotations, const std::vector<std::vector<RunParts>>& runs,
                         std::vector<int> wanted, uintptr_t stream) {
            const gpu::StepInput input = input_of(std::move(ids), rotations, runs, std::move(wanted));
            nb::gil_scoped_release unlocked;
            self.start(input, pointer<void>(stream));
        })
        .def("dense", &gpu::Model::dense, nb::call_guard<nb::gil_scoped_release>())
        .def("head", &gpu::Model::head, nb::call_guard<nb::gil_scoped_release>())
        // (ids, values) of a row's highest logits; nothing where they are too many, or were not looked for
        .def("highest", [](const gpu::Model& self, int row) {
            gpu::Model::Highest found;
            {
                nb::gil_scoped_release unlocked;
                found = self.highest(row);
            }
            const int count = found.count <= gpu::HIGHEST ? found.count : 0;
            return std::make_pair(std::vector<int>(found.ids, found.ids + count), std::vector<float>(found.values, found.values + count));
        });
}

}  // namespace dali
