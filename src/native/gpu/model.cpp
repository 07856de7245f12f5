#include "gpu/model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "gpu/flag.h"

namespace dali::gpu {

namespace {

constexpr int MOST_GRAPH_ROWS = 8;  // with more, launching takes little beside what is launched
constexpr size_t MOST_GRAPHS = 4096;
constexpr int MOST_HIGHEST_ROWS = 32;  // of more, the host looks for the highest logits itself
constexpr size_t MOST_SCORES = 1 << 24;  // floats that attention works in at a time, unless one token wants more

const AttentionModule& attention_of(const DecoderLayer& layer) {
    const auto* module = std::get_if<const AttentionModule*>(&layer.mixer);
    if (!module) throw std::invalid_argument("recurrent layers");
    return **module;
}

const Projections& projections_of(const AttentionModule& module) {
    const Projections* projections = std::get_if<Projections>(&module.projections);
    if (!projections) throw std::invalid_argument("attention over a latent");
    if (projections->value_norm.weight) throw std::invalid_argument("norms of values");
    if (projections->gated) throw std::invalid_argument("gated attention");
    const bool whole = projections->query_norm.width > module.width || projections->key_norm.width > module.width;
    if (projections->norms_follow && whole) throw std::invalid_argument("norms of all heads after their rotation");
    return *projections;
}

size_t bytes_of(const Values& values, size_t count) { return count * item_bytes(values.dtype); }

// Which of a launch's numbers a pair (token, head, part) takes, in floats.
size_t attention_floats(const AttentionModule& module, int parts) {
    return size_t(module.heads) * parts * (PART + 2 + module.value_width);
}

int strips(const dali::Matrix& matrix) { return (matrix.rows + 31) / 32; }

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
    experts_ = &experts;
    foresight_ = foresight;
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
    const size_t item = item_bytes(model_.dtype), row_bytes = hidden * item;
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
    for (int row = 0; row < rows; row++) {
        if (input.ids[row] < 0 || input.ids[row] >= model_.vocabulary) throw std::out_of_range("a token beyond the vocabulary");
        std::memcpy(at_.x + row * row_bytes, static_cast<const char*>(model_.embeddings) + input.ids[row] * row_bytes, row_bytes);
    }
    if (model_.embedding_scale != 1) scale(at_.x, model_.embedding_scale, model_.dtype, rows * hidden);
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

gpu::Panel Model::panel(const std::vector<const PackedLinear*>& readers) const {
    gpu::Panel panel = panel_;
    panel.columns = 0;
    bool integers = false, floats = false;
    for (const PackedLinear* one : readers) {
        panel.columns = std::max(panel.columns, one->matrix.columns);
        (is_quantized(one->matrix.format) ? integers : floats) = true;
    }
    if (!integers) panel.quants = nullptr;
    if (!floats) panel.values = nullptr;
    return panel;
}

void Model::project(const std::vector<Target>& targets, const gpu::Panel& panel, float divisor, int rows, Handle stream) const {
    std::vector<bool> done(targets.size());
    for (size_t i = 0; i < targets.size(); i++) {
        if (done[i]) continue;
        const Format format = targets[i].linear.matrix.format;
        gpu::LinearCall call{};
        int64_t warps = 0;
        for (size_t j = i; j < targets.size() && call.count < PRODUCTS; j++) {
            const PackedLinear& linear = targets[j].linear;
            if (done[j] || linear.matrix.format != format) continue;
            done[j] = true;
            call.products[call.count++] = {targets[j].out, weights_.of(linear.packed), weights_.of(linear.bias), matrix_of(linear.matrix)};
            warps += strips(linear.matrix);
        }
        call.panel = panel;
        call.tokens = rows;
        call.dtype = int(model_.dtype);
        call.divisor = divisor;
        const LinearKernels& kernels = linears_.at(format);
        launch(device_, rows > 8 ? kernels.many : kernels.few, warps, stream, call);
    }
}

void Model::fill(const void* x, int width, const gpu::Panel& panel, Handle stream) const {
    const gpu::GatherCall call{x, panel, rows_, width, int(model_.dtype)};
    for (const auto& [format, kernels] : linears_)  // one of each kind fills for all of it
        if (is_quantized(format) ? panel.quants != nullptr : panel.values != nullptr) {
            launch(device_, kernels.gather, int64_t(rows_) * (panel.columns / GROUP), stream, call);
            if (!panel.quants || !panel.values) return;
        }
}

gpu::AddNormCall Model::add_norm(const Norm& before, float scale, const Norm& after, const gpu::Panel& panel, int rows) const {
    const char* x = reinterpret_cast<const char*>(on_gpu(at_.x));
    gpu::AddNormCall call{};
    call.residual = x;
    call.part = part_;
    call.panel = panel;
    call.before = norm(before);
    call.after = norm(after);
    call.rows = rows;
    call.width = model_.before_head.width;
    call.dtype = int(model_.dtype);
    call.scale = scale;
    return call;
}

void Model::attend(const AttentionModule& module, const gpu::Panel& input, int layer, Handle stream) const {
    const Projections& from = projections_of(module);
    const int dtype = int(model_.dtype), rows = rows_;
    project({{from.query, query_}, {from.key, key_}, {from.value, value_}}, input, 1, rows, stream);
    const auto whole = [&](const Norm& norm, char* of, int heads) {  // of all heads' values together
        if (!norm.weight || norm.width == module.width) return NormPart{norm.weight ? this->norm(norm) : NormPart{}};
        const NormPart part = this->norm(norm);
        const gpu::NormCall call{of, part.weight, of, rows * (heads * module.width / norm.width), norm.width, dtype, norm.epsilon};
        launch(device_, rms_norm_, call.rows, stream, call);
        return NormPart{};
    };
    const auto* kept = reinterpret_cast<const KeptToken*>(on_gpu(at_.kept[layer]));
    const int kind = model_.rotations[layer];
    gpu::TurnCall turn{};
    turn.query_norm = whole(from.query_norm, query_, module.heads);
    turn.key_norm = whole(from.key_norm, key_, module.kv_heads);
    turn.norms_follow = from.norms_follow;
    turn.query = query_, turn.keys = key_, turn.values = value_;
    turn.kept = kept;
    turn.turning = int(module.rotary.turning);
    if (module.rotary.turning != Turning::none) {
        turn.cos = reinterpret_cast<const void*>(on_gpu(at_.cos[kind]));
        turn.sin = reinterpret_cast<const void*>(on_gpu(at_.sin[kind]));
    }
    turn.turned = module.rotary.width, turn.given = module.rotary.given, turn.rotary_dtype = int(module.rotary.dtype);
    turn.tokens = rows, turn.heads = module.heads, turn.kv_heads = module.kv_heads;
    turn.key_width = module.width, turn.value_width = module.value_width, turn.dtype = dtype;
    turn.value_scale = from.value_scale;
    launch(device_, turn_, int64_t(rows) * (module.heads + 2 * module.kv_heads), stream, turn);

    const int width = module.heads * module.value_width, parts = parts_[layer];
    gpu::Panel panel = this->panel({&module.out});
    const bool filled = module.value_width % GROUP == 0 && panel.columns == width;  // else by a kernel of its own
    const size_t a_token = attention_floats(module, parts);
    const int slice = std::max(1, int(std::min<size_t>(rows, attention_floats_ / a_token)));
    for (int first = 0; first < rows; first += slice) {
        const int count = std::min(slice, rows - first);
        const size_t items = size_t(count) * module.heads * parts;
        gpu::AttendCall call{};
        call.query = query_;
        call.keys = key_, call.values = value_;
        call.out = filled ? nullptr : mixed_;
        if (filled) call.panel = panel;
        call.kept = kept + first;
        call.sinks = weights_.of(module.sinks);
        call.scores = attention_;
        call.most = call.scores + items * PART;
        call.total = call.most + items;
        call.sums = call.total + items;
        call.tokens = count, call.parts = parts;
        call.heads = module.heads, call.kv_heads = module.kv_heads;
        call.key_width = module.width, call.value_width = module.value_width, call.dtype = dtype;
        call.scale = module.scale;
        launch(device_, attend_, int64_t(items), stream, call);
        launch(device_, merge_, int64_t(count) * module.heads, stream, call);
    }
    if (!filled) fill(mixed_, width, panel, stream);
    project({{module.out, part_}}, panel, 1, rows, stream);
}

void Model::compute(const Mlp& mlp, const gpu::Panel& input, void* out, Handle stream) const {
    const int width = mlp.down.columns;
    const size_t row_bytes = width * item_bytes(model_.dtype);
    const bool joined = mlp.first.size() == 1;
    if (joined) project({{mlp.first[0], first_}}, input, 1, rows_, stream);
    else project({{mlp.first[0], first_}, {mlp.first[1], first_ + rows_ * row_bytes}}, input, 1, rows_, stream);
    gpu::GateUpCall call{};
    call.gate = first_;
    call.up = first_ + (joined ? row_bytes : rows_ * row_bytes);
    call.panel = panel({&mlp.down});
    call.tokens = rows_, call.width = width, call.stride = joined ? 2 * width : width;
    call.dtype = int(model_.dtype), call.activation = int(mlp.activation);
    launch(device_, gate_up_, int64_t(rows_) * (call.panel.columns / GROUP), stream, call);
    project({{mlp.down, out}}, call.panel, 1, rows_, stream);
}

void Model::route(const Router& router, const Uploads& at, int64_t* ids, float* weights, Handle stream) const {
    const auto values = [&](const Values& of) { return at.of(static_cast<const char*>(of.at)); };
    gpu::RouteCall call{};
    call.x = normed_;
    call.weight = values(router.weight), call.bias = values(router.bias), call.correction = values(router.correction);
    call.products = products_, call.scores = scores_, call.ranks = ranks_;
    call.weights = weights, call.ids = ids;
    call.tokens = rows_, call.hidden = router.hidden, call.experts = router.experts, call.top_k = router.top_k;
    call.score = int(router.score), call.by_logit = router.by_logit;
    call.groups = router.groups, call.kept_groups = router.kept_groups, call.judged = router.judged, call.normalise = router.normalise;
    call.dtype = int(model_.dtype), call.weight_dtype = int(router.weight.dtype), call.bias_dtype = int(router.bias.dtype);
    call.correction_dtype = int(router.correction.dtype);
    call.rounded = int(router.rounded), call.logits_dtype = int(router.logits_dtype), call.weights_dtype = int(router.weights_dtype);
    call.epsilon = router.epsilon, call.floor = router.floor, call.scale = router.scale;
    launch(device_, route_products_, int64_t(rows_) * router.experts, stream, call);
    launch(device_, route_choose_, rows_, stream, call);
}

void Model::queue(int layer, bool foresee, Handle stream) const {
    const DecoderLayer& here = *model_.layers[layer];
    const DecoderLayer* before = layer ? model_.layers[layer - 1] : nullptr;
    const Projections& projections = projections_of(attention_of(here));
    end_layer(before, stream);
    gpu::AddNormCall entry = add_norm(before ? before->after_mlp : Norm{}, before ? before->residual_scale : 1, here.before_attention,
                                      panel({&projections.query, &projections.key, &projections.value}), rows_);
    char* x = reinterpret_cast<char*>(on_gpu(at_.x));
    if (before) entry.sum = x;
    else entry.part = nullptr;
    launch(device_, add_norm_, rows_, stream, entry);
    attend(attention_of(here), entry.panel, layer, stream);

    std::vector<const PackedLinear*> readers;
    if (here.mlp)
        for (const PackedLinear& one : here.mlp->first) readers.push_back(&one);
    const int moe = moe_[layer];
    gpu::AddNormCall middle = add_norm(here.after_attention, here.residual_scale, here.before_mlp, moe < 0 ? panel(readers) : experts_->input(moe), rows_);
    middle.sum = x;
    if (moe >= 0) middle.out = normed_;
    launch(device_, add_norm_, rows_, stream, middle);
    if (moe < 0) return compute(*here.mlp, middle.panel, part_, stream);
    route(*here.router, weights_, ids_, router_weights_, stream);
    int ahead = 0;
    if (foresee)
        for (const Router* router : foresight_[moe].routers) {
            route(*router, foresight_weights_, ahead_ + ahead, ahead_weights_, stream);
            ahead += rows_ * router->top_k;
        }
    const auto address = [](const void* of) { return reinterpret_cast<Address>(of); };
    const Posted posted{rows_, address(normed_), address(ids_), address(router_weights_), address(ahead_), ahead};
    experts_->post(posted, reinterpret_cast<const uint32_t*>(on_gpu(at_.base)), uint32_t(moe), stream);
    if (!here.mlp) return;
    const gpu::Panel own = panel(readers);  // the experts' serves as well, if it is as these linears read it
    const bool shares = !own.values && middle.panel.quants && own.columns <= middle.panel.columns;
    if (!shares) fill(normed_, here.hidden, own, stream);
    compute(*here.mlp, shares ? middle.panel : own, shared_, stream);
}

void Model::end_layer(const DecoderLayer* layer, Handle stream) const {
    if (!layer || !layer->router || !layer->mlp) return;
    gpu::ShareCall call{};
    call.part = part_;
    call.shared = shared_, call.x = normed_;
    call.gate = weights_.of(static_cast<const char*>(layer->shared_gate.at));
    call.tokens = rows_, call.hidden = layer->hidden;
    call.dtype = int(model_.dtype), call.gate_dtype = int(layer->shared_gate.dtype);
    launch(device_, share_, int64_t(rows_) * ((layer->hidden + 31) / 32), stream, call);
}

bool Model::dense(int layer, bool foresee) {
    const int moe = moe_.at(layer);
    foresee = foresee && moe >= 0 && foreseen(moe);
    if (rows_ > MOST_GRAPH_ROWS) queue(layer, foresee, stream_);
    else {
        Graph& graph = graphs_[{layer, rows_, parts_[layer], foresee}];
        if (!graph) graph = capture(device_, capturing_.get(), [&] { queue(layer, foresee, capturing_.get()); });
        graph.launch(stream_);
    }
    if (moe >= 0)
        experts_->expect(moe, rows_, reinterpret_cast<Address>(router_weights_), foresee ? rows_ * foreseen(moe) : 0, stream_,
                         first_number_ + uint32_t(moe));
    return moe >= 0;
}

void Model::head(Address logits) {
    const DecoderLayer& last = *model_.layers.back();
    end_layer(&last, stream_);
    gpu::AddNormCall call = add_norm(last.after_mlp, last.residual_scale, model_.before_head, panel({&model_.head}), wanted_);
    call.from = reinterpret_cast<const int*>(on_gpu(at_.wanted));
    launch(device_, add_norm_, wanted_, stream_, call);
    project({{model_.head, reinterpret_cast<void*>(logits)}}, call.panel, model_.logits_divisor, wanted_, stream_);
    find_highest(logits);
}

void Model::find_highest(Address logits) {
    found_.expected++;
    if (!wanted_ || wanted_ > MOST_HIGHEST_ROWS) return;
    gpu::HighestCall call = highest_call_;
    call.logits = reinterpret_cast<const void*>(logits);
    call.most = reinterpret_cast<const int*>(on_gpu(at_.most));
    call.rows = wanted_, call.width = model_.head.matrix.rows, call.dtype = int(model_.dtype);
    const int64_t pieces = int64_t(wanted_) * ((call.width + PIECE - 1) / PIECE), warps[] = {pieces, wanted_, pieces};
    for (int i = 0; i < 3; i++) launch(device_, highest_[i], warps[i], stream_, call);
    gpu::PostCall post{};
    const auto part = [&](int i, const void* from, void* to, int words) { post.from[i] = from, post.to[i] = to, post.words[i] = words; };
    part(0, call.ids, found_.ids, wanted_ * HIGHEST);
    part(1, call.values, found_.values, wanted_ * HIGHEST);
    part(2, call.counts, found_.counts, wanted_);
    post.flag = const_cast<uint32_t*>(found_.flag);
    post.number = found_.expected;
    launch(device_, post_, 1, stream_, post);
}

Model::Highest Model::highest(int row) const {
    if (row < 0 || row >= wanted_ || wanted_ > MOST_HIGHEST_ROWS) return {};
    wait_for(device_, found_.flag, found_.expected, stream_);
    const size_t at = size_t(row) * HIGHEST;
    return {found_.counts[row], found_.ids + at, found_.values + at};
}

std::vector<StepOutcome> Model::step(Planner& planner, const StepInput& input, Address logits, Handle stream) {
    start(input, stream);
    std::vector<StepOutcome> outcomes;
    for (int layer = 0; layer < layers(); layer++) {
        if (!dense(layer, planner.prefetches())) continue;
        const int moe = moe_[layer];
        const int later = foreseen(moe) ? moe + foresight_[moe].distance : 0;
        outcomes.push_back(experts_->finish(planner, later, 0, part()));
    }
    head(logits);
    return outcomes;
}

}  // namespace dali::gpu
