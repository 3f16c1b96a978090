/* Loaded before libc (LD_PRELOAD): counts a process's operations on files in a folder, and injects a fault at one.

   cc -O1 -shared -fPIC faults.c -o faults.so -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { NOTHING, KILL, FULL, STOP };

static char folder[4096];
static int mode = NOTHING, half_written = 0;
static long at = 0, count = 0;
static char story[1 << 20];
static size_t told = 0;

/* From now on: at the `number`th operation (from 1) on a file below `prefix`, kill the process, make the disk full from
   then on, or stop the process until SIGCONT. */
void attack_arm(const char *prefix, int what, long number) {
    strncpy(folder, prefix, sizeof folder - 1);
    mode = what, at = number, count = 0, half_written = 0, told = 0;
}

/* The operations so far, one per line: name and path relative to the folder. */
const char *attack_story(void) { return story[told] = 0, story; }

static int below(const char *path) { return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0; }

/* The path of an open file if it is below the folder, otherwise NULL. */
static const char *descriptor_below(int descriptor) {
    static __thread char path[4096];
    char link[64];
    if (!folder[0]) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    return below(path) ? path : NULL;
}

/* Record an operation and inject the fault; 1 if the operation must fail because the disk is full. */
static int meet(const char *operation, const char *path, int needs_room) {
    long number = ++count;
    int size = snprintf(story + told, sizeof story - told - 1, "%s %s\n", operation, path + strlen(folder));
    if (size > 0 && told + size < sizeof story - 1) told += size;
    if (number == at && mode == KILL) kill(getpid(), SIGKILL);
    if (number == at && mode == STOP) kill(getpid(), SIGSTOP);
    return mode == FULL && number >= at && needs_room;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL return errno = ENOSPC, -1

#define OPEN(name)                                                                                  \
    int name(const char *path, int flags, ...) {                                                    \
        va_list rest;                                                                               \
        va_start(rest, flags);                                                                      \
        mode_t rights = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                 \
        va_end(rest);                                                                               \
        if (below(path) && (flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)))                       \
            if (meet("open", path, (flags & O_CREAT) && access(path, F_OK))) FAIL;                  \
        return NEXT(name)(path, flags, rights);                                                     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                \
    int name(int where, const char *path, int flags, ...) {                                         \
        va_list rest;                                                                               \
        va_start(rest, flags);                                                                      \
        mode_t rights = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                 \
        va_end(rest);                                                                               \
        if (below(path) && (flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)))                       \
            if (meet("open", path, (flags & O_CREAT) && access(path, F_OK))) FAIL;                  \
        return NEXT(name)(where, path, flags, rights);                                              \
    }
OPENAT(openat)
OPENAT(openat64)

/* A write at the chosen operation is torn: only half of it is written. */
ssize_t write(int descriptor, const void *data, size_t size) {
    const char *path = descriptor_below(descriptor);
    if (!path) return NEXT(write)(descriptor, data, size);
    if (mode == KILL && count + 1 == at && size > 1) NEXT(write)(descriptor, data, size / 2);
    if (meet("write", path, 1)) {
        if (!half_written++ && size > 1) return NEXT(write)(descriptor, data, size / 2);
        FAIL;
    }
    return NEXT(write)(descriptor, data, size);
}

int fsync(int descriptor) {
    const char *path = descriptor_below(descriptor);
    if (path && meet("fsync", path, 0)) FAIL;
    return NEXT(fsync)(descriptor);
}

int rename(const char *from, const char *to) {
    if ((below(from) || below(to)) && meet("rename", below(to) ? to : from, 0)) FAIL;
    return NEXT(rename)(from, to);
}

int unlink(const char *path) {
    if (below(path)) meet("unlink", path, 0);
    return NEXT(unlink)(path);
}

int mkdir(const char *path, mode_t rights) {
    if (below(path) && meet("mkdir", path, access(path, F_OK))) FAIL;
    return NEXT(mkdir)(path, rights);
}

#define TRUNCATE(name, type)                                                                        \
    int name(int descriptor, type size) {                                                           \
        const char *path = descriptor_below(descriptor);                                            \
        if (path) meet("truncate", path, 0);                                                        \
        return NEXT(name)(descriptor, size);                                                        \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
