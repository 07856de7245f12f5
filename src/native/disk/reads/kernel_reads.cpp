#include "disk/reads/kernel_reads.h"

#include <algorithm>
#include <ctime>

#include "disk/reads/checksum.h"

#ifdef __linux__
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dali {

namespace {

constexpr int ENOUGH = 8;  // reads that tell how the file system goes about them

double clock() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

#ifdef __linux__

struct KernelReads::Read {
    ReadJob job;
    iocb asked;
    double began, begun;
};

KernelReads::KernelReads(int file, int most) : file_(file), most_(most) {
    if (file < 0 || ::syscall(SYS_io_setup, unsigned(most), &context_) != 0) context_ = 0;
}

KernelReads::~KernelReads() {
    if (context_) ::syscall(SYS_io_destroy, context_);
}

bool KernelReads::begin(const ReadJob& job, double now) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!usable() || under_way_.size() == most_) return false;
    auto read = std::make_unique<Read>(Read{job, {}, now, 0});
    iocb* asked = &read->asked;
    asked->aio_data = uint64_t(reinterpret_cast<uintptr_t>(read.get()));
    asked->aio_lio_opcode = IOCB_CMD_PREAD;
    asked->aio_fildes = uint32_t(file_);
    asked->aio_buf = uint64_t(reinterpret_cast<uintptr_t>(job.into));
    asked->aio_nbytes = job.bytes;
    asked->aio_offset = job.offset;
    if (::syscall(SYS_io_submit, context_, 1L, &asked) != 1) return false;
    read->begun = clock();
    under_way_.push_back(std::move(read));
    return true;
}

std::vector<KernelReads::Outcome> KernelReads::collect(std::chrono::milliseconds patience) {
    constexpr long AT_ONCE = 16;
    io_event events[AT_ONCE];
    timespec none{}, until{patience.count() / 1000, patience.count() % 1000 * 1000000};
    long count = ::syscall(SYS_io_getevents, context_, 0L, AT_ONCE, events, &none);
    const bool awaited = count <= 0;
    if (awaited) count = ::syscall(SYS_io_getevents, context_, 1L, AT_ONCE, events, &until);
    std::vector<Outcome> ended;
    std::unique_lock<std::mutex> lock(mutex_);
    for (long i = 0; i < count; i++) {
        const Read* read = reinterpret_cast<const Read*>(uintptr_t(events[i].data));
        const double end = end_of(*read, awaited);
        ended.push_back({read->job, events[i].res == int64_t(read->job.bytes), read->began, end});
        learn(read->begun - read->began, end - read->began);
        under_way_.erase(std::find_if(under_way_.begin(), under_way_.end(), [&](const auto& one) { return one.get() == read; }));
    }
    lock.unlock();
    for (Outcome& one : ended) one.good = one.good && xxh3(one.job.into, one.job.bytes) == one.job.checksum;
    return ended;
}

double KernelReads::end_of(const Read& read, bool awaited) {
    const double now = clock(), bytes = double(read.job.bytes);
    if (awaited) {
        awaited_ += now - read.began;
        awaited_bytes_ += bytes;
        return now;
    }
    return awaited_bytes_ > 0 ? std::min(now, std::max(read.begun, read.began + bytes * awaited_ / awaited_bytes_)) : now;
}

#else

struct KernelReads::Read {};

KernelReads::KernelReads(int file, int most) : file_(file), most_(most) {}
KernelReads::~KernelReads() {}
bool KernelReads::begin(const ReadJob&, double) { return false; }
std::vector<KernelReads::Outcome> KernelReads::collect(std::chrono::milliseconds) { return {}; }

#endif

// Some file systems read while they are asked to begin: then nothing is computed meanwhile, and threads do better.
bool KernelReads::usable() const { return context_ && (ended_ < ENOUGH || 2 * blocked_ < took_); }

void KernelReads::learn(double blocked, double took) {
    if (ended_++ >= ENOUGH) return;
    blocked_ += blocked;
    took_ += took;
}

bool KernelReads::any() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return !under_way_.empty();
}

}  // namespace dali
