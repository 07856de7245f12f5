/* A disk that fails, in the place of the system's: tests/store/test_shaken_disk.py builds and preloads it. Of files whose names end
   in "shaken" the next reads go wrong as shake() says, whether pread() does them or the kernel by itself, which it refuses to if
   refuse_submissions() says so. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

typedef ssize_t reading(int, void *, size_t, off_t);
typedef int opening(const char *, int, ...);
typedef long calling(long, ...);

static char how[32];
static atomic_int left, refused, preads;

void shake(const char *what, int reads) {
    strncpy(how, what, sizeof how - 1);
    left = reads;
}

void refuse_submissions(int whether) { refused = whether; }

int reads_by_pread(void) { return preads; }

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
    preads++;
    return shaken((reading *)dlsym(RTLD_NEXT, "pread"), file, into, bytes, offset);
}

ssize_t pread64(int file, void *into, size_t bytes, off_t offset) {
    preads++;
    return shaken((reading *)dlsym(RTLD_NEXT, "pread64"), file, into, bytes, offset);
}

static void shake_event(struct io_event *event) {
    const struct iocb *asked = (const struct iocb *)(size_t)event->obj;
    if (left <= 0 || !concerns((int)asked->aio_fildes) || atomic_fetch_sub(&left, 1) <= 0) return;
    if (!strcmp(how, "error")) event->res = -EIO;
    if (!strcmp(how, "interrupted")) event->res = -EINTR;
    if (!strcmp(how, "refused")) event->res = -EINVAL;
    if (!strcmp(how, "short")) event->res = 4096;
    if (!strcmp(how, "odd")) event->res = 1000;
    if (!strcmp(how, "wrong")) ((char *)(size_t)asked->aio_buf)[asked->aio_nbytes / 2] ^= 1;
}

/* Of calls of the kernel by their numbers, those of its own reads. */
long syscall(long number, ...) {
    long given[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) given[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_io_setup && refused) return errno = ENOSYS, -1;
    if (number == SYS_io_submit && left > 0 && !strcmp(how, "slow to begin")) usleep(5000);
    if (number == SYS_io_getevents && left > 0 && !strcmp(how, "stalled") && atomic_fetch_sub(&left, 1) > 0 && usleep(700000) < 0)
        return -1;
    const long result = ((calling *)dlsym(RTLD_NEXT, "syscall"))(number, given[0], given[1], given[2], given[3], given[4], given[5]);
    for (long i = 0; number == SYS_io_getevents && i < result; i++) shake_event((struct io_event *)given[3] + i);
    return result;
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
