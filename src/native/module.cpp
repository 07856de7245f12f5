// Python's view of the kernels. Tensors come as addresses: src/dali/kernels/native checks them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <tuple>

#include "attention.h"
#include "clock.h"
#include "decode.h"
#include "decoder_layer.h"
#include "decoding_model.h"
#include "dependencies.h"
#include "experts.h"
#include "layer.h"
#include "linear.h"
#include "measure.h"
#include "norm.h"
#include "pairs.h"
#include "pool.h"
#include "repack.h"
#include "route.h"
#include "two_lane.h"
#include "variants.h"

namespace nb = nanobind;
using namespace dali;

namespace {

Format format_of(const std::string& name) {
    const char* names[FORMATS] = {"f32", "f16", "bf16", "w8", "w4", "mxfp4", "q4k"};
    for (int i = 0; i < FORMATS; i++)
        if (name == names[i]) return Format(i);
    throw std::invalid_argument("unknown format " + name);
}

Activation activation_of(const std::string& name) {
    const char* names[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped_swiglu"};
    for (int i = 0; i < 6; i++)
        if (name == names[i]) return Activation(i);
    throw std::invalid_argument("unknown activation " + name);
}

// Where a layer's experts lie.
struct ExpertRecords {
    std::vector<const uint8_t*> at;
};

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// (row, keys, values, capacity, place, first)
using Token = std::tuple<int64_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;

std::vector<DecodingToken> decoding(const std::vector<Token>& tokens) {
    std::vector<DecodingToken> all;
    for (const auto& [row, keys, values, capacity, place, first] : tokens)
        all.push_back({row, pointer<char>(keys), pointer<char>(values), capacity, place, first});
    return all;
}

using NormParts = std::tuple<uintptr_t, int, float>;  // weight, width, epsilon

Norm norm_of(const NormParts& parts) {
    const auto& [weight, width, epsilon] = parts;
    return {pointer<const void>(weight), width, epsilon};
}

std::vector<std::tuple<int, double>> reported(const std::vector<LayerOutcome>& outcomes) {
    std::vector<std::tuple<int, double>> all;
    for (const LayerOutcome& outcome : outcomes) all.emplace_back(outcome.active, outcome.expert_seconds);
    return all;
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // the command line leaves its objects to the end of the process
    nb::class_<ExpertLayout>(m, "ExpertLayout")
        .def("__init__",
             [](ExpertLayout* self, int hidden, int intermediate, bool biased, const std::string& activation, float alpha, float limit,
                const std::vector<std::string>& formats, const std::vector<size_t>& offsets, const std::vector<size_t>& biases) {
                 // formats, offsets, biases: of gate (if there is one), up, down
                 new (self) ExpertLayout();
                 self->hidden = hidden;
                 self->intermediate = intermediate;
                 self->gated = formats.size() == 3;
                 self->biased = biased;
                 self->gate_kind = {activation_of(activation), alpha, limit};
                 const size_t up = self->gated, down = up + 1;
                 if (self->gated) {
                     self->gate = Matrix(format_of(formats[0]), intermediate, hidden);
                     self->gate_at = offsets[0];
                 }
                 self->up = Matrix(format_of(formats[up]), intermediate, hidden);
                 self->up_at = offsets[up];
                 self->down = Matrix(format_of(formats[down]), hidden, intermediate);
                 self->down_at = offsets[down];
                 if (biased) {
                     if (self->gated) self->gate_bias_at = biases[0];
                     self->up_bias_at = biases[up];
                     self->down_bias_at = biases[down];
                 }
             });
    nb::class_<Matrix>(m, "Matrix")
        .def("__init__", [](Matrix* self, const std::string& format, int rows,
                            int columns) { new (self) Matrix(format_of(format), rows, columns); })
        .def_prop_ro("bytes", &Matrix::bytes);
    nb::enum_<Dtype>(m, "Dtype").value("f32", Dtype::f32).value("bf16", Dtype::bf16).value("f16", Dtype::f16);

    m.def("compute_experts",
          [](const ExpertLayout& layout, const std::vector<uintptr_t>& records, const std::vector<int64_t>& offsets, uintptr_t slots,
             int top_k, uintptr_t hidden, Dtype dtype, uintptr_t rows) {
              nb::gil_scoped_release unlocked;
              const Timed timed(Part::experts);
              static_assert(sizeof(uintptr_t) == sizeof(uint8_t*));
              compute_experts(layout, {int(records.size()), reinterpret_cast<const uint8_t* const*>(records.data()), offsets.data(),
                                       pointer<const int64_t>(slots), top_k, pointer<const void>(hidden), dtype, pointer<float>(rows)});
          });
    m.def("reduce_slots", [](uintptr_t rows, uintptr_t weights, int tokens, int top_k, int hidden, Dtype dtype, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::experts);
        reduce_slots(pointer<const float>(rows), pointer<const float>(weights), tokens, top_k, hidden, dtype, pointer<void>(out));
    });
    m.def("linear", [](const Matrix& matrix, uintptr_t packed, int columns, uintptr_t bias, uintptr_t x, Dtype dtype, int tokens,
                       uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::dense);
        linear({{matrix, pointer<const uint8_t>(packed), pointer<const float>(bias), pointer<void>(out)}}, columns,
               pointer<const void>(x), dtype, tokens);
    });
    nb::class_<ExpertRecords>(m, "ExpertRecords").def("__init__", [](ExpertRecords* self, const std::vector<uintptr_t>& addresses) {
        new (self) ExpertRecords();
        for (const uintptr_t address : addresses) self->at.push_back(pointer<const uint8_t>(address));
    });
    m.def("compute_layer", [](const ExpertLayout& layout, const ExpertRecords& records, uintptr_t ids, uintptr_t weights,
                              Dtype weights_dtype, int tokens, int top_k, uintptr_t hidden, Dtype dtype, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::experts);
        return compute_layer(layout, {records.at, pointer<const int64_t>(ids), pointer<const void>(weights), weights_dtype, tokens,
                                      top_k, pointer<const void>(hidden), dtype, pointer<void>(out)});
    });
    m.def("count_pairs", [](uintptr_t ids, int64_t pairs, int64_t experts) {
        return count_pairs(pointer<const int64_t>(ids), pairs, experts);
    });
    m.def("order_pairs", [](uintptr_t ids, int64_t pairs, int64_t experts, const std::vector<int64_t>& order, uintptr_t out) {
        return order_pairs(pointer<const int64_t>(ids), pairs, experts, order, pointer<int64_t>(out));
    });
    nb::class_<Issued>(m, "Issued");
    nb::class_<Dependencies>(m, "Dependencies")
        .def(nb::init<std::optional<int64_t>>(), nb::arg("drop").none() = nb::none())
        .def("derive", &Dependencies::derive)
        .def("before", &Dependencies::before)
        .def("host_waited", &Dependencies::host_waited)
        .def("forget", &Dependencies::forget)
        .def_prop_ro("derived", &Dependencies::derived)
        .def_prop_ro("remembered", &Dependencies::remembered);
    // a workload, ResidencyView and ExpertCosts as in src/dali/policies -> ((cpu, gpu, fetch), seconds, whether no plan is faster)
    m.def("search_two_lane", [](nb::handle tokens_of, nb::handle view, nb::handle costs) {
        const auto number = [](nb::handle from, const char* name) { return nb::cast<double>(from.attr(name)); };
        const nb::object resident = view.attr("resident"), in_flight = view.attr("in_flight");
        const auto cpu = nb::cast<nb::list>(costs.attr("cpu")), gpu = nb::cast<nb::list>(costs.attr("gpu"));
        LayerState layer{{}, {}, {}, nb::cast<int64_t>(view.attr("slots")), number(view, "link_free"), number(costs, "link"),
                         number(costs, "link_contended"), number(costs, "launch"), number(costs, "handover")};
        const auto expert = [&](size_t id, int64_t tokens) {
            if (tokens < 0 || size_t(tokens) >= std::min(cpu.size(), gpu.size())) throw std::out_of_range("more tokens than foreseen");
            return LayerExpert{int64_t(id), nb::cast<double>(cpu[tokens]), nb::cast<double>(gpu[tokens])};
        };
        const auto in = [](const nb::object& all, const nb::int_& key) {
            const int found = PySequence_Contains(all.ptr(), key.ptr());
            if (found < 0) throw nb::python_error();
            return found == 1;
        };
        const auto workload = nb::cast<std::vector<int64_t>>(tokens_of);
        for (size_t id = 0; id < workload.size(); id++) {
            const int64_t tokens = workload[id];
            if (!tokens) continue;
            const nb::int_ key(id);
            if (in(resident, key)) layer.kept.push_back(expert(id, tokens));
            else if (!in(in_flight, key)) layer.absent.push_back(expert(id, tokens));
        }
        std::vector<std::pair<double, size_t>> landing;
        for (const nb::handle id : in_flight) landing.emplace_back(nb::cast<double>(in_flight[id]), nb::cast<size_t>(id));
        std::sort(landing.begin(), landing.end());
        for (const auto& [seconds, id] : landing) {
            const int64_t tokens = workload.at(id);
            layer.landing.push_back({tokens ? expert(id, tokens) : LayerExpert{-1, 0, 0}, seconds});
        }
        const FoundPlan found = search_two_lane(std::move(layer));
        const auto tuple = [](const std::vector<int64_t>& ids) {
            nb::list list;
            for (const int64_t id : ids) list.append(id);
            return nb::tuple(list);
        };
        return nb::make_tuple(nb::make_tuple(tuple(found.cpu), tuple(found.gpu), tuple(found.fetch)), found.seconds, found.proven);
    });
    m.def("rms_norm", [](uintptr_t x, uintptr_t weight, Dtype dtype, int64_t rows, int width, float epsilon, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::norm);
        rms_norm(pointer<const void>(x), pointer<const void>(weight), dtype, rows, width, epsilon, pointer<void>(out));
    });
    m.def("route", [](uintptr_t x, uintptr_t weight, Dtype dtype, int tokens, int hidden, int experts, int top_k, bool normalise,
                      uintptr_t logits, uintptr_t weights, Dtype weights_dtype, uintptr_t ids) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::router);
        route({pointer<const void>(x), pointer<const void>(weight), dtype, tokens, hidden, experts, top_k, normalise,
               pointer<void>(logits), pointer<void>(weights), weights_dtype, pointer<int64_t>(ids)});
    });
    // query, keys, values: (address, row stride, head stride); tokens: (row, keys, values, capacity, place, first) each
    using Strided = std::tuple<uintptr_t, int64_t, int64_t>;
    m.def("attend", [](Dtype dtype, int heads, int kv_heads, int key_width, int value_width, float scale, const Strided& query,
                       const Strided& keys, const Strided& values, uintptr_t sinks, const std::vector<Token>& tokens, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::attention);
        const auto rows = [](const Strided& s) { return Rows{pointer<const void>(std::get<0>(s)), std::get<1>(s), std::get<2>(s)}; };
        attend({dtype, heads, kv_heads, key_width, value_width, scale, rows(query), rows(keys), rows(values),
                pointer<const float>(sinks), pointer<void>(out)}, decoding(tokens));
    });
    nb::class_<PackedLinear>(m, "PackedLinear")
        .def("__init__", [](PackedLinear* self, const Matrix& matrix, uintptr_t packed, int columns, uintptr_t bias) {
            new (self) PackedLinear{matrix, pointer<const uint8_t>(packed), columns, pointer<const float>(bias)};
        });
    nb::class_<AttentionModule>(m, "AttentionModule")
        .def("__init__", [](AttentionModule* self, const PackedLinear& query, const PackedLinear& key, const PackedLinear& value,
                            const PackedLinear& out, const NormParts& query_norm, const NormParts& key_norm, int heads, int kv_heads,
                            int width, float scale, uintptr_t sinks) {
            new (self) AttentionModule{query, key, value, out, norm_of(query_norm), norm_of(key_norm), heads, kv_heads, width, scale,
                                       pointer<const float>(sinks)};
        });
    m.def("decode", [](const AttentionModule& module, uintptr_t x, Dtype dtype, int rows, uintptr_t cos, uintptr_t sin,
                       const std::vector<Token>& tokens, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        decode(module, pointer<const void>(x), dtype, rows, pointer<const void>(cos), pointer<const void>(sin), decoding(tokens),
               pointer<void>(out));
    });
    nb::class_<DecoderLayer>(m, "DecoderLayer")
        .def("__init__",
             [](DecoderLayer* self, const NormParts& before_attention, const AttentionModule& attention, const NormParts& before_experts,
                const std::tuple<uintptr_t, int, bool, Dtype>& router, const ExpertLayout& layout, const ExpertRecords& records) {
                 const auto& [weight, top_k, normalise, weights_dtype] = router;
                 new (self) DecoderLayer{norm_of(before_attention), norm_of(before_experts), attention,
                                         {pointer<const void>(weight), top_k, normalise, weights_dtype}, layout, records.at};
             },
             nb::keep_alive<1, 3>(), nb::keep_alive<1, 6>());
    // Layers one after another; tokens: of each layer. Returns each one's (experts that took part, seconds they took).
    m.def("decode_layers", [](const std::vector<const DecoderLayer*>& layers, uintptr_t x, Dtype dtype, int rows, uintptr_t cos,
                              uintptr_t sin, const std::vector<std::vector<Token>>& tokens, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        std::vector<LayerOutcome> outcomes;
        for (size_t i = 0; i < layers.size(); i++)
            outcomes.push_back(decode_layer(*layers[i], i + 1 < layers.size() ? layers[i + 1] : nullptr,
                                            pointer<const void>(i ? out : x), dtype, rows, pointer<const void>(cos),
                                            pointer<const void>(sin), decoding(tokens.at(i)), pointer<void>(out)));
        return reported(outcomes);
    });
    nb::class_<DecodingModel>(m, "DecodingModel")
        .def("__init__",
             [](DecodingModel* self, Dtype dtype, uintptr_t embeddings, int64_t vocabulary, const std::vector<const DecoderLayer*>& layers,
                const NormParts& before_head, const PackedLinear& head) {
                 new (self) DecodingModel{dtype, pointer<const void>(embeddings), vocabulary, layers, norm_of(before_head), head};
             })
        // rotations: (cos, sin) of each token; tokens and result as above
        .def("decode", [](const DecodingModel& self, const std::vector<int64_t>& ids,
                          const std::vector<std::tuple<uintptr_t, uintptr_t>>& rotations, const std::vector<std::vector<Token>>& tokens,
                          uintptr_t logits) {
            nb::gil_scoped_release unlocked;
            std::vector<Rotation> turns;
            for (const auto& [cos, sin] : rotations) turns.push_back({pointer<const void>(cos), pointer<const void>(sin)});
            std::vector<std::vector<DecodingToken>> of_layers;
            for (const std::vector<Token>& layer : tokens) of_layers.push_back(decoding(layer));
            return reported(decode(self, ids, turns, of_layers, pointer<void>(logits)));
        });
    m.def("repack", [](const Matrix& matrix, const std::string& type, uintptr_t raw, size_t row_bytes, uintptr_t packed) {
        nb::gil_scoped_release unlocked;
        return repack(matrix, type, pointer<const uint8_t>(raw), row_bytes, pointer<uint8_t>(packed));
    });
    m.def("decode_blocks", [](const std::string& type, uintptr_t raw, size_t count, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        decode_blocks(type, pointer<const uint8_t>(raw), count, pointer<float>(out));
    });
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
    m.def("set_threads", [](int threads, bool pinned) { Pool::instance().set_threads(threads, pinned); });
    m.def("threads", [] { return Pool::instance().threads(); });
    m.def("variants", [] {
        std::vector<std::string> names;
        for (const Variant* variant : usable_variants()) names.push_back(variant->name);
        return names;
    });
    m.def("variant", [] { return std::string(current_variant().name); });
    m.def("choose_variant", [](const std::string& name) { return choose_variant(name); });
}
