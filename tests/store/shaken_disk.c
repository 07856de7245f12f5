/* A disk that fails, in the place of the system's: tests/store/test_shaken_disk.py builds and preloads it. Of files whose names end
   in "shaken" the next reads go wrong as shake() says. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef ssize_t reading(int, void *, size_t, off_t);
typedef int opening(const char *, int, ...);

static char how[32];
static atomic_int left;

void shake(const char *what, int reads) {
    strncpy(how, what, sizeof how - 1);
    left = reads;
}

static int concerns(int file) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    const ssize_t length = readlink(link, name, sizeof name - 1);
    return length > 6 && !memcmp(name + length - 6, "shaken", 6);
}

static ssize_t shaken(reading *plain, int file, void *into, size_t bytes, off_t offset) {
    if (left <= 0 || !concerns(file) || atomic_fetch_sub(&left, 1) <= 0) return plain(file, into, bytes, offset);
    if (!strcmp(how, "error")) return errno = EIO, -1;
    if (!strcmp(how, "interrupted")) return errno = EINTR, -1;
    if (!strcmp(how, "refused") && fcntl(file, F_GETFL) & O_DIRECT) return errno = EINVAL, -1;
    if (!strcmp(how, "stalled")) usleep(700000);
    if (!strcmp(how, "short") && bytes > 4096) bytes = 4096;
    const ssize_t count = plain(file, into, bytes, offset);
    if (!strcmp(how, "odd") && count > 1000) return 1000; /* as a file system on a network may */
    if (!strcmp(how, "wrong") && count > 0) ((char *)into)[count / 2] ^= 1;
    return count;
}

ssize_t pread(int file, void *into, size_t bytes, off_t offset) {
    return shaken((reading *)dlsym(RTLD_NEXT, "pread"), file, into, bytes, offset);
}

ssize_t pread64(int file, void *into, size_t bytes, off_t offset) {
    return shaken((reading *)dlsym(RTLD_NEXT, "pread64"), file, into, bytes, offset);
}

/* A file system without reads past the page cache. */
static int opened(opening *plain, const char *path, int flags, int mode) {
    if (flags & O_DIRECT && !strcmp(how, "indirect")) return errno = EINVAL, -1;
    return plain(path, flags, mode);
}

static int mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; }

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const int mode = mode_of(flags, rest);
    va_end(rest);
    return opened((opening *)dlsym(RTLD_NEXT, "open"), path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const int mode = mode_of(flags, rest);
    va_end(rest);
    return opened((opening *)dlsym(RTLD_NEXT, "open64"), path, flags, mode);
}
