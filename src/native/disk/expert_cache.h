// The experts of a model of which memory holds a part, in slots, and a store on disk all.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "disk/disk_time.h"
#include "disk/rates.h"
#include "disk/read_ahead.h"
#include "disk/reads/reader.h"

namespace dali {

// A layer's records in a store: where the first one begins, and the bytes of each.
struct LayerRecords {
    int64_t offset;
    size_t bytes;
};

struct Store {
    std::string path;
    int experts;  // of each layer
    std::vector<LayerRecords> layers;
    std::vector<uint64_t> checksums;  // of each record: layer * experts + expert
};

// Experts asked for by steps, and what became of them. Seconds are of whoever waited.
struct CacheCounters {
    std::vector<int64_t> hits, misses;  // of each layer: there when its router had spoken, or not
    int64_t reads = 0, bytes = 0;       // that were begun, those ahead of a step included
    int64_t wanted_bytes = 0;           // of those, what a step asked for
    int64_t plain_reads = 0;            // of the reads, through the page cache
    int64_t ahead_used = 0, ahead_late = 0, ahead_wasted = 0;  // experts read ahead: there in time; still under way; not asked for
    double stalled = 0;                 // nothing was left to compute, and bytes were not there
};

class ExpertCache {
  public:
    // `memory`: room for all slots there will ever be, of `slot_bytes` each; the first `slots` are used. `depth`: reads under way at
    // once; `direct`: past the page cache, where the file system allows that. StoreFailure: the store cannot be opened.
    ExpertCache(Store store, uint8_t* memory, size_t slot_bytes, int slots, int depth, bool direct);

    // Experts of one layer's step, in memory while somebody computes them. Of several at a time each may wait for others' slots. A step
    // that wants nearly all of a layer, as a prompt's does, has those of the next one read as soon as its own are under way.
    class Lease {
      public:
        // experts: ascending. Asks for those that are absent, in that order, which is the disk's.
        Lease(ExpertCache& cache, int layer, std::vector<int> experts);
        // experts: in any order, in which absent ones are asked for; of a step that note() was told of, or of none. Nothing else is read.
        struct Unnoted {};
        Lease(ExpertCache& cache, int layer, std::vector<int> experts, Unnoted);
        ~Lease();
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;

        // Which of `experts`, by their places, are in memory and were not told before, as soon as there are any; none: all were
        // told. Those told before are given back, unless all shall be `kept`. Of a step that wants nearly all of a layer a few at a
        // time, so that the disk is not left without slots to fill until all are computed. StoreFailure: one cannot be read.
        const std::vector<int>& next(bool kept = false);

        // Gives one that next() told back before the others. By its place, once.
        void give_back_told(int place);

        const uint8_t* at(int place) const { return cache_.at(slots_[place]); }
        int slot(int place) const { return slots_[place]; }

      private:
        void begin();
        bool join(int place);
        void ask();
        bool wide() const { return noted_ && cache_.wide(experts_.size()); }
        void collect(size_t most);
        void give_back(int place);

        ExpertCache& cache_;
        const int layer_;
        const std::vector<int> experts_;
        const bool noted_;  // by itself
        std::vector<int> slots_;                        // by place; -1: none yet
        std::vector<int> there_, waiting_, absent_, told_;  // places
    };

    // A step of a layer wants those experts, ascending, which counts as one use of each: those of them that are not in memory.
    std::vector<int> note(int layer, const std::vector<int>& experts);
    // Whether an expert is in memory.
    bool holds(int layer, int expert) const;
    // Slots without a lease that would be left if those experts had one, too; less than 0: they have to wait for others'.
    int room(int layer, const std::vector<int>& experts) const;

    // Use more slots from here on.
    void grow(int slots);
    // Whether the step that has begun is to look ahead: where that has been found to pay, or is being tried.
    bool looks_ahead() const;
    // Of what a layer may choose, ids [tokens][top_k], read as much as the disk has time for. Told when the layer before it has asked
    // for its own.
    void foresee(int layer, const int64_t* ids, int tokens, int top_k);
    // Never look ahead.
    void rest();

    // Steps that decode, so far: their seconds, those in which they waited for the disk, and the experts that had to be read for them,
    // ahead or not.
    struct Decoded {
        double seconds, waited;
        int64_t wanted;
    };
    Decoded decoded() const;
    // Whether looking ahead is being compared with not doing so.
    bool compares() const;
    // From here on reads go past the page cache, or through it, and so they do, for themselves, `in_steps` that decode. `held`: looking
    // ahead is not compared meanwhile.
    void read_past(bool direct, bool in_steps, bool held);

    int slots() const;
    int held() const;  // slots that hold an expert
    bool direct() const;  // but for steps that decode
    bool reads_past() const { return reader_.reads_past(); }  // whether the file system allows that
    CacheCounters counters() const;
    Reader::Spent spent() const { return reader_.spent(); }

    // Called now and then, without the cache's lock, while somebody waits for the disk; may throw, which ends the wait.
    static void (*on_waiting)();

  private:
    enum class State { empty, reading, ready, failed };
    struct Slot {
        State state = State::empty;
        int record = -1;
        int leases = 0;
        bool ahead = false;  // read for a step that has not come yet
        std::string problem;
    };

    const uint8_t* at(int slot) const { return memory_ + size_t(slot) * slot_bytes_; }
    int record(int layer, int expert) const { return layer * store_.experts + expert; }
    bool wide(size_t experts) const { return 4 * experts > 3 * size_t(store_.experts); }
    // Experts of a wide lease that are told at a time: computed while as many are read, and as many wait to be.
    size_t few() const { return size_t(std::max(reader_.threads() / 2, FEWEST)); }
    std::vector<int> note_locked(int layer, const std::vector<int>& experts);
    [[noreturn]] void fail(const std::string& problem) const;  // StoreFailure
    // The slot of a layer's expert that goes first, -1: none of them may go. Found anew where the layer has changed since.
    int first_to_go(int layer);
    void changed(int record) { first_to_go_[record / store_.experts] = UNKNOWN; }
    // Slots for other experts, at most so many: of those that are of the least worth, and of what was read ahead, in vain then, only
    // where there is nothing else, and not for another read ahead.
    std::vector<int> take(int count, bool ahead = false);
    enum class Why { few, many, ahead };  // a step waits for it and a few others, or for many; or may want it
    void begin(int slot, int record, Why why);
    bool wait(std::unique_lock<std::mutex>& lock, bool wide);
    void empty(Slot& slot);
    void release(Slot& slot);
    void read_on(int layer);
    int far_enough(int layer) const;
    void settle_ahead(int layer, const std::vector<int>& experts);
    void begin_layer(int layer, const std::vector<int>& experts);
    void read_ahead(int layer, const std::vector<int>& experts);
    double read_seconds(int layer) const;
    void note_wait(double seconds, bool wide);
    void arrive(int record, const std::string& problem);

    const Store store_;
    uint8_t* const memory_;
    const size_t slot_bytes_;
    mutable std::mutex mutex_;
    std::condition_variable arrived_;
    bool collecting_ = false;  // whether somebody is in the reader's collect()
    std::vector<Slot> slots_;
    std::vector<int> empty_;        // slots
    static constexpr int UNKNOWN = -2;
    static constexpr int FEWEST = 2;  // a call's cost is little beside theirs
    std::vector<int> first_to_go_;  // by layer: slots, -1: none
    std::vector<int> slot_of_;  // by record; -1: absent
    Rates rates_;
    ReadAhead ahead_;
    bool rests_ = false, wide_ = false;  // never looks ahead; the last lease was wide
    bool direct_, direct_in_steps_;      // reads go past the page cache
    bool held_ = false;                  // looking ahead is not compared
    DiskTime time_;
    static constexpr int NO_LAYER = -2;  // none comes right after it
    int layer_ = NO_LAYER;  // that began last, of a step that is not wide
    int left_ = NO_LAYER;   // whose wide lease ended last
    double left_at_ = 0, between_ = 0;  // when; seconds from there to the next layer's, of late
    int64_t wanted_ = 0;   // experts that had to be read for such steps, ahead or not
    int unasked_ = 0;      // experts of the last lease that wait for their turn
    CacheCounters counters_;
    Reader reader_;  // last: its threads end first
};

}  // namespace dali
