// A file of records, each of which is read past the page cache, where a second copy of them would take the memory that they need
// themselves; or through it, where that is faster, so that no more stays there than is being read.
#pragma once

#include <cstdint>
#include <string>

namespace dali {

constexpr size_t PAGE = 4096;  // offsets, lengths and addresses of such reads are multiples of it

class RecordFile {
  public:
    // StoreFailure: it cannot be opened.
    explicit RecordFile(const std::string& path);
    ~RecordFile();
    RecordFile(const RecordFile&) = delete;
    RecordFile& operator=(const RecordFile&) = delete;

    // Fills into[0..bytes) from `offset` on; `direct`: past the page cache, where the file system allows that. Through it all of it is
    // under way at once, nothing beyond is read, and the cache is told to forget it. StoreFailure: the bytes cannot be had. Any thread
    // may call it at any time.
    void read(uint8_t* into, size_t bytes, int64_t offset, bool direct) const;

    int direct_file() const { return direct_; }  // -1: there is none

  private:
    size_t read_some(uint8_t* into, size_t bytes, int64_t offset, bool& direct) const;

    int plain_ = -1, direct_ = -1;
};

}  // namespace dali
