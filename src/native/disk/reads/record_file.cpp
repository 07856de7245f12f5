#include "disk/reads/record_file.h"

#ifndef _WIN32
#include <fcntl.h>
#include <unistd.h>
#endif

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "disk/failure.h"

namespace dali {

namespace {

#ifndef _WIN32
constexpr int TRIES = 3;  // of a read that fails, before its error is believed
constexpr auto PAUSE = std::chrono::milliseconds(20);
#endif

}  // namespace

#ifdef _WIN32
RecordFile::RecordFile(const std::string&) { throw StoreFailure("it is on Windows, where no experts are read from disk"); }
RecordFile::~RecordFile() {}
void RecordFile::read(uint8_t*, size_t, int64_t, bool) const {}
#else

RecordFile::RecordFile(const std::string& path) {
    plain_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (plain_ < 0) throw StoreFailure(std::string("it cannot be opened (") + std::strerror(errno) + ")");
#ifdef POSIX_FADV_RANDOM
    ::posix_fadvise(plain_, 0, 0, POSIX_FADV_RANDOM);  // what the kernel reads beyond a record would stay
#endif
#ifdef O_DIRECT
    direct_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);  // not every file system has it
#endif
}

RecordFile::~RecordFile() {
    ::close(plain_);
    if (direct_ >= 0) ::close(direct_);
}

void RecordFile::read(uint8_t* into, size_t bytes, int64_t offset, bool direct) const {
    size_t done = 0;
    direct = direct && direct_ >= 0;
#ifdef POSIX_FADV_WILLNEED
    if (!direct) ::posix_fadvise(plain_, offset, off_t(bytes), POSIX_FADV_WILLNEED);
#endif
    while (done < bytes) {
        done += read_some(into + done, bytes - done, offset + int64_t(done), direct);
        if (direct && done % PAGE) direct = false;  // a short read: what is left begins amid a page
    }
#ifdef POSIX_FADV_DONTNEED
    if (!direct) ::posix_fadvise(plain_, offset, off_t(bytes), POSIX_FADV_DONTNEED);
#endif
}

// At least one byte. `direct` becomes false where the file system refuses such reads after all.
size_t RecordFile::read_some(uint8_t* into, size_t bytes, int64_t offset, bool& direct) const {
    for (int tries = 1;;) {
        const ssize_t count = ::pread(direct ? direct_ : plain_, into, bytes, off_t(offset));
        if (count > 0) return size_t(count);
        if (count == 0) throw StoreFailure("it ends too early: it has changed since it was opened");
        if (errno == EINTR) continue;
        if (direct && (errno == EINVAL || errno == ENOTSUP)) {
            direct = false;
            continue;
        }
        if (tries++ == TRIES) throw StoreFailure(std::string("it cannot be read (") + std::strerror(errno) + ")");
        std::this_thread::sleep_for(PAUSE);
    }
}

#endif

}  // namespace dali
