// A model's memory on the GPU: its weights, what a step works in, and the tables that a step is sent.
#include "gpu/model.h"

#include <algorithm>
#include <cstring>

#include "gpu/model_parts.h"

namespace dali::gpu {

namespace {

constexpr size_t MOST_GRAPHS = 4096;
constexpr size_t MOST_SCORES = 1 << 24;  // floats that attention works in at a time, unless one token wants more

}  // namespace

Model::Model(const Device& device, const DecodingModel& model, const Module& common, const std::vector<LinearModules>& linears, int most_rows,
             int64_t most_tokens)
    : device_(device), model_(model), most_rows_(most_rows), add_norm_(common.function("add_norm")), rms_norm_(common.function("rms_norm")),
      turn_(common.function("turn")), attend_(common.function("attend")), merge_(common.function("merge")),
      route_products_(common.function("route_products")), route_choose_(common.function("route_choose")), gate_up_(common.function("gate_up")),
      share_(common.function("share")), post_(common.function("post")),
      highest_{common.function("highest_of_pieces"), common.function("highest_of_rows"), common.function("collect_highest")} {
    for (const LinearModules& one : linears)
        linears_[one.format] = {one.few->function("gather_rows"), one.few->function("linear"), one.many->function("linear")};
    const auto linear = [&](const PackedLinear& of) {
        if (!linears_.count(of.matrix.format)) throw std::invalid_argument("linears of another format");
        weights_.add(of.packed, of.matrix.bytes());
        if (of.bias) weights_.add(of.bias, of.matrix.rows * sizeof(float));
    };
    const auto norm = [&](const Norm& of) {
        if (of.weight && of.dtype != model.dtype) throw std::invalid_argument("norms of another type");
        weights_.add(of.weight, of.width * item_bytes(model.dtype));
    };
    const int most_parts = int((most_tokens - 1) / PART + 1);
    for (const DecoderLayer* layer : model.layers) {
        const AttentionModule& module = attention_of(*layer);
        const Projections& projections = projections_of(module);
        for (const PackedLinear* one : {&projections.query, &projections.key, &projections.value, &module.out}) linear(*one);
        for (const Norm* one : {&projections.query_norm, &projections.key_norm, &layer->before_attention, &layer->after_attention,
                                &layer->before_mlp, &layer->after_mlp})
            norm(*one);
        if (module.sinks) weights_.add(module.sinks, module.heads * sizeof(float));
        attention_floats_ = std::max({attention_floats_, MOST_SCORES, attention_floats(module, most_parts)});
        if (layer->output_scale.at || layer->beside.before_experts.weight) throw std::invalid_argument("experts beside a dense network");
        if (!layer->mlp && !layer->router) throw std::invalid_argument("layers of a mixer alone");
        if (layer->mlp) {
            int rows = 0;
            for (const PackedLinear& one : layer->mlp->first) rows += one.matrix.rows;
            if (rows != 2 * layer->mlp->down.columns) throw std::invalid_argument("networks without a gate");
            for (const PackedLinear& one : layer->mlp->first) linear(one);
            linear(layer->mlp->down);
        }
        weights_.add(layer->shared_gate.at, bytes_of(layer->shared_gate, layer->hidden));
        if (const Router* router = layer->router) {
            if (router->scored != Dtype::f32 || router->expert_scales.at) throw std::invalid_argument("scores that are rounded or scaled");
            weights_.add(router->weight.at, bytes_of(router->weight, size_t(router->experts) * router->hidden));
            weights_.add(router->bias.at, bytes_of(router->bias, router->experts));
            weights_.add(router->correction.at, bytes_of(router->correction, router->experts));
        }
        moe_.push_back(layer->router ? moe_layers_++ : -1);
    }
    norm(model.before_head);
    linear(model.head);
    for (const int kind : model.rotations) kinds_ = std::max(kinds_, size_t(kind) + 1);
    work_bytes_ = cut_work(0);
    cut_tables(most_rows);
    table_bytes_ = at_.bytes;
    work_bytes_ += table_bytes_;
}

size_t Model::cut_work(uint64_t base) {
    const size_t item = item_bytes(model_.dtype);
    int hidden = model_.before_head.width, query = 0, key = 0, value = 0, mixed = 0, first = 0, experts = 0, top_k = 0, widest = hidden;
    for (const DecoderLayer* layer : model_.layers) {
        const AttentionModule& module = attention_of(*layer);
        query = std::max(query, module.heads * module.width);
        key = std::max(key, module.kv_heads * module.width);
        value = std::max(value, module.kv_heads * module.value_width);
        mixed = std::max(mixed, module.heads * module.value_width);
        if (layer->mlp) first = std::max(first, 2 * layer->mlp->down.columns);
        if (layer->router) experts = std::max(experts, layer->router->experts), top_k = std::max(top_k, layer->router->top_k);
    }
    widest = std::max({widest, mixed, first / 2});
    Cut cut;
    cut.begin(base);
    const auto rows = [&](int columns) { return cut.take<char>(size_t(most_rows_) * columns * item); };
    part_ = rows(hidden), normed_ = rows(hidden), shared_ = rows(hidden);
    query_ = rows(query), key_ = rows(key), value_ = rows(value), mixed_ = rows(mixed), first_ = rows(first);
    panel_ = cut_panel(cut, most_rows_, padded_columns(widest));
    const size_t pairs = size_t(most_rows_) * experts;
    products_ = cut.take<float>(pairs), scores_ = cut.take<float>(pairs), ranks_ = cut.take<float>(pairs);
    router_weights_ = cut.take<float>(size_t(most_rows_) * top_k);
    ids_ = cut.take<int64_t>(size_t(most_rows_) * top_k);
    attention_ = cut.take<float>(attention_floats_);
    gpu::HighestCall& highest = highest_call_;
    const size_t pieces = (model_.head.matrix.rows + PIECE - 1) / PIECE, most = MOST_HIGHEST_ROWS;
    highest.ranks = cut.take<uint32_t>(most * pieces * MOST);
    highest.ties = cut.take<int>(most * pieces), highest.begin = cut.take<int>(most * pieces);
    highest.least = cut.take<uint32_t>(most);
    highest.ids = cut.take<int>(most * HIGHEST), highest.values = cut.take<float>(most * HIGHEST);
    highest.counts = cut.take<int>(most);
    return cut.bytes();
}

void Model::cut_tables(int rows) {  // by rows alone, as graphs know these places
    Cut cut;
    cut.begin(reinterpret_cast<uint64_t>(tables_host_.get()));
    at_.base = cut.take<uint32_t>(1);
    at_.wanted = cut.take<int>(rows), at_.most = cut.take<int>(rows);
    at_.cos.assign(kinds_, nullptr), at_.sin.assign(kinds_, nullptr);
    for (size_t i = 0; i < model_.layers.size(); i++) {
        const Rotary& rotary = attention_of(*model_.layers[i]).rotary;
        const int kind = model_.rotations[i];
        if (at_.cos[kind] || rotary.turning == Turning::none) continue;
        const size_t bytes = rows * rotary.given * item_bytes(rotary.dtype);
        at_.cos[kind] = cut.take<char>(bytes), at_.sin[kind] = cut.take<char>(bytes);
    }
    at_.kept.clear();
    for (size_t i = 0; i < model_.layers.size(); i++) at_.kept.push_back(cut.take<KeptToken>(rows));
    at_.x = cut.take<char>(size_t(rows) * model_.before_head.width * item_bytes(model_.dtype));
    at_.bytes = cut.bytes();
}

void Model::put() {
    device_.enter();
    capturing_ = create_stream(device_);
    weights_.put(device_, capturing_.get());
    work_ = allocate(device_, cut_work(0));
    cut_work(work_.get());
    tables_ = allocate(device_, table_bytes_);
    tables_host_ = allocate_host(device_, table_bytes_);
    const auto cut_found = [&](uint64_t base) {
        Cut cut;
        cut.begin(base);
        const size_t most = size_t(MOST_HIGHEST_ROWS) * HIGHEST;
        found_.ids = cut.take<int>(most), found_.values = cut.take<float>(most);
        found_.counts = cut.take<int>(MOST_HIGHEST_ROWS), found_.flag = cut.take<uint32_t>(1);
        return cut.bytes();
    };
    highest_host_ = allocate_host(device_, cut_found(0));
    cut_found(reinterpret_cast<uint64_t>(highest_host_.get()));
    *found_.flag = found_.expected = 0;
}

void Model::follow(Layers& experts, const std::vector<Foresight>& foresight) {
    device_.enter();
    const bool follows_others = experts_;
    experts_ = &experts;
    foresight_ = foresight;
    if (follows_others) {  // whose foresight is in its graphs, and among its weights
        DALI_CUDA(device_.driver, finish_stream, stream_);
        graphs_.clear();
        foresight_weights_ = Uploads();
        foresight_work_ = DeviceMemory();
    }
    size_t most = 0;
    for (size_t moe = 0; moe < foresight.size(); moe++) {
        for (const Router* router : foresight[moe].routers) {
            foresight_weights_.add(router->weight.at, bytes_of(router->weight, size_t(router->experts) * router->hidden));
            foresight_weights_.add(router->bias.at, bytes_of(router->bias, router->experts));
            foresight_weights_.add(router->correction.at, bytes_of(router->correction, router->experts));
        }
        most = std::max(most, size_t(foreseen(int(moe))) * most_rows_);
    }
    if (!most) return;
    foresight_weights_.put(device_, capturing_.get());
    const auto cut_ahead = [&](uint64_t base) {
        Cut cut;
        cut.begin(base);
        ahead_ = cut.take<int64_t>(most);
        ahead_weights_ = cut.take<float>(most);  // nobody reads them
        return cut.bytes();
    };
    foresight_work_ = allocate(device_, cut_ahead(0));
    cut_ahead(foresight_work_.get());
}

int Model::foreseen(int moe) const {
    int count = 0;
    if (moe < int(foresight_.size()))
        for (const Router* router : foresight_[moe].routers) count += router->top_k;
    return count;
}

void Model::start(const StepInput& input, Handle stream) {
    const int rows = int(input.ids.size()), wanted = int(input.wanted.size()), hidden = model_.before_head.width;
    if (rows < 1 || rows > most_rows_ || wanted > rows) throw Failure(0, "a step of " + std::to_string(rows) + " rows was not planned for");
    device_.enter();
    if (graphs_.size() > MOST_GRAPHS) {
        DALI_CUDA(device_.driver, finish_stream, stream);
        graphs_.clear();
    }
    stream_ = stream, rows_ = rows, wanted_ = wanted;
    cut_tables(rows);
    first_number_ = experts_->take_numbers(moe_layers_) - moe_layers_ + 1;
    *at_.base = first_number_;
    std::copy(input.wanted.begin(), input.wanted.end(), at_.wanted);
    std::fill_n(at_.most, wanted, std::min(MOST, model_.head.matrix.rows));
    look_up(model_.embeddings, input.ids, hidden, model_.dtype, at_.x);
    std::vector<bool> sent(kinds_);
    parts_.assign(model_.layers.size(), 1);
    for (size_t i = 0; i < model_.layers.size(); i++) {
        const Rotary& rotary = attention_of(*model_.layers[i]).rotary;
        const int kind = model_.rotations[i];
        if (!sent[kind] && rotary.turning != Turning::none) {
            sent[kind] = true;
            const size_t bytes = rotary.given * item_bytes(rotary.dtype);
            for (int row = 0; row < rows; row++) {
                const Rotation& from = input.rotations.at(kind).at(row);
                std::memcpy(at_.cos[kind] + row * bytes, from.cos, bytes);
                std::memcpy(at_.sin[kind] + row * bytes, from.sin, bytes);
            }
        }
        int64_t most = 1;
        KeptToken* kept = at_.kept[i];
        for (const Run& run : input.runs.at(i))
            for (int n = 0; n < run.count; n++) {
                const int64_t place = run.first.place + n;
                const int64_t first = run.window ? std::max(run.first.first, place + 1 - run.window) : run.first.first;
                *kept++ = {run.first.keys, run.first.values, run.first.capacity, place, first, int(run.first.row) + n};
                most = std::max(most, (place - first) / PART + 1);
            }
        if (kept - at_.kept[i] != rows) throw std::out_of_range("a layer's places are not those of all rows");
        while (parts_[i] < most) parts_[i] *= 2;
    }
    DALI_CUDA(device_.driver, copy_up, tables_.get(), tables_host_.get(), at_.bytes, stream);
}

}  // namespace dali::gpu
