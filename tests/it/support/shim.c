/* Stands between a process and the files of one directory: lets writes and fsyncs fail on demand, kills the process at
 * one of them, and records what is written, made, renamed, removed and fsynced, and what is printed meanwhile. Puts the
 * wall clock forward and back, too. Loaded with LD_PRELOAD; see shim.rs.
 *
 * SHIM_DIR      the directory, as the kernel names it
 * SHIM_CONTROL  a file of SLOTS int64, mapped, so that it can be changed at any moment (enum below)
 * SHIM_LOG      where the record goes; none without it
 *
 * Every file of the directory counts, under the name that it has at that moment, but for the lock file and SQLite's
 * index in shared memory (-shm): neither survives a crash. What lies in a directory below is a copy for the moment, and
 * left alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

enum { WRITE_ERROR, WRITES_LEFT, SYNC_ERROR, SYNCS_LEFT, SPACE_LIMITED, SPACE_LEFT, FAILED, SEEN, SYNC_DELAY,
       KILL_AT, KILL_LEFT, KILLED, CLOCK_AHEAD_MS, FAIL_OF, KILL_OF, SLOTS };
enum { OP_WRITE, OP_SYNC, OP_TRUNCATE, OP_UNLINK, OP_SYNC_FAILED, OP_CREATE, OP_RENAME, OP_PRINT };

enum { NOWHERE, BEFORE_WRITE, IN_WRITE, BEFORE_SYNC, AFTER_SYNC }; /* KILL_AT */
enum { ANY, EVENTS, STATE, OTHER };                                /* FAIL_OF, KILL_OF */

static volatile int64_t *control;
static const char *dir;
static size_t dir_length;
static int log_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void)
{
    const char *control_path = getenv("SHIM_CONTROL"), *log_path = getenv("SHIM_LOG");
    dir = getenv("SHIM_DIR");
    if (!dir || !control_path)
        return;
    dir_length = strlen(dir);
    int fd = open(control_path, O_RDWR | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED
                       : mmap(NULL, SLOTS * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        fprintf(stderr, "shim: cannot map %s\n", control_path);
        _exit(99);
    }
    if (log_path && (log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) < 0) {
        fprintf(stderr, "shim: cannot open %s\n", log_path);
        _exit(99);
    }
    control = map;
}

/* A name in the directory; the directory itself has the empty one. NULL for what is none of our business. */
static const char *name_of(const char *path)
{
    if (!control || strncmp(path, dir, dir_length) != 0)
        return NULL;
    path += dir_length;
    if (*path == 0)
        return path;
    if (*path != '/' || strchr(++path, '/'))
        return NULL;
    size_t length = strlen(path);
    if (length == 0 || length > NAME_MAX || strcmp(path, "lock") == 0)
        return NULL;
    return length > 4 && strcmp(path + length - 4, "-shm") == 0 ? NULL : path;
}

/* The same of a path as a caller gives it: the directory may be written in another way. */
static const char *name_at(const char *path, char *buffer)
{
    if (!control)
        return NULL;
    const char *slash = strrchr(path, '/');
    char parent[PATH_MAX];
    if (!slash || slash == path || (size_t)(slash - path) >= sizeof parent)
        return NULL;
    memcpy(parent, path, (size_t)(slash - path));
    parent[slash - path] = 0;
    char whole[PATH_MAX];
    if (!realpath(parent, whole) || strcmp(whole, dir) != 0)
        return NULL;
    if (snprintf(buffer, PATH_MAX, "%s%s", whole, slash) >= PATH_MAX)
        return NULL;
    return name_of(buffer);
}

/* The name that an open file has now. */
static const char *ours(int fd, char *path)
{
    char link[64];
    if (!control)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    path[length] = 0;
    const char deleted[] = " (deleted)";
    size_t ending = sizeof deleted - 1;
    if ((size_t)length > ending && strcmp(path + length - ending, deleted) == 0)
        return NULL;
    return name_of(path);
}

static int kind_of(const char *name)
{
    size_t length = strlen(name);
    if (strncmp(name, "events-", 7) == 0 && length > 4 && strcmp(name + length - 4, ".log") == 0)
        return EVENTS;
    return strncmp(name, "state.db", 8) == 0 ? STATE : OTHER;
}

/* An operation, the name, and what belongs to it: the bytes of a write or of what is printed, the new name of a rename. */
static void record(uint32_t op, const char *name, uint64_t offset, const void *data, uint64_t length)
{
    if (log_fd < 0)
        return;
    int with_data = op == OP_WRITE || op == OP_RENAME || op == OP_PRINT;
    struct { uint32_t op, name; uint64_t offset, length; } head = { op, (uint32_t)strlen(name), offset, length };
    struct iovec parts[3] = {
        { &head, sizeof head }, { (void *)name, head.name }, { (void *)data, with_data ? length : 0 },
    };
    ssize_t all = (ssize_t)(parts[0].iov_len + parts[1].iov_len + parts[2].iov_len);
    if (syscall(SYS_writev, log_fd, parts, 3) != all) {
        fprintf(stderr, "shim: the record is incomplete\n");
        _exit(99);
    }
}

static int is_meant(int slot, const char *name)
{
    return control[slot] == ANY || control[slot] == kind_of(name);
}

static int fails(int error, int left, const char *name)
{
    if (!control[error] || !control[left] || !is_meant(FAIL_OF, name))
        return 0;
    if (control[left] > 0)
        control[left]--;
    control[FAILED]++;
    errno = (int)control[error];
    return 1;
}

/* Whether this is the place at which the process is to be killed. A truncation, a rename, a deletion and the making of
 * a file count as writes. */
static int killed_at(int place, const char *name)
{
    return control[KILL_AT] == place && is_meant(KILL_OF, name) && control[KILL_LEFT] > 0 && --control[KILL_LEFT] == 0;
}

static void die(void)
{
    control[KILL_AT] = NOWHERE;
    control[KILLED]++;
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static void kill_at(int place, const char *name)
{
    if (killed_at(place, name))
        die();
}

/* A full disk refuses what needs room, and no more. */
static int refused(const char *name, int needs_room)
{
    if (!needs_room && control[WRITE_ERROR] == ENOSPC)
        return 0;
    return fails(WRITE_ERROR, WRITES_LEFT, name);
}

static int no_space(int fd, uint64_t end)
{
    struct stat found;
    if (!control[SPACE_LIMITED] || fstat(fd, &found) != 0 || end <= (uint64_t)found.st_size)
        return 0;
    int64_t growth = (int64_t)(end - (uint64_t)found.st_size);
    if (growth > control[SPACE_LEFT]) {
        control[FAILED]++;
        errno = ENOSPC;
        return 1;
    }
    control[SPACE_LEFT] -= growth;
    return 0;
}

static ssize_t write_at(int fd, const void *data, size_t length, off_t offset)
{
    char path[PATH_MAX];
    const char *name = ours(fd, path);
    if (!name)
        return syscall(SYS_pwrite64, fd, data, length, offset);
    ssize_t written = -1;
    pthread_mutex_lock(&mutex);
    control[SEEN]++;
    kill_at(BEFORE_WRITE, name);
    if (killed_at(IN_WRITE, name)) {
        syscall(SYS_pwrite64, fd, data, length / 2, offset);
        die();
    }
    if (!refused(name, 1) && !no_space(fd, (uint64_t)offset + length)) {
        written = syscall(SYS_pwrite64, fd, data, length, offset);
        if (written > 0)
            record(OP_WRITE, name, (uint64_t)offset, data, (uint64_t)written);
    }
    pthread_mutex_unlock(&mutex);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return write_at(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return write_at(fd, data, length, offset); }

/* Recorded before the caller knows of it: what follows from it comes later in the record. */
static ssize_t print(const void *data, size_t length)
{
    ssize_t written = syscall(SYS_write, STDOUT_FILENO, data, length);
    if (written > 0) {
        pthread_mutex_lock(&mutex);
        record(OP_PRINT, "", 0, data, (uint64_t)written);
        pthread_mutex_unlock(&mutex);
    }
    return written;
}

ssize_t write(int fd, const void *data, size_t length)
{
    char path[PATH_MAX];
    if (fd == STDOUT_FILENO)
        return print(data, length);
    if (!ours(fd, path))
        return syscall(SYS_write, fd, data, length);
    struct stat found;
    int appends = (fcntl(fd, F_GETFL) & O_APPEND) && fstat(fd, &found) == 0;
    off_t offset = appends ? found.st_size : lseek(fd, 0, SEEK_CUR);
    ssize_t written = write_at(fd, data, length, offset);
    if (written > 0)
        lseek(fd, offset + written, SEEK_SET);
    return written;
}

/* Fewer bytes than were asked for are a legal answer. */
ssize_t writev(int fd, const struct iovec *parts, int count)
{
    char path[PATH_MAX];
    if (!ours(fd, path))
        return syscall(SYS_writev, fd, parts, count);
    for (int i = 0; i < count; i++)
        if (parts[i].iov_len > 0)
            return write(fd, parts[i].iov_base, parts[i].iov_len);
    return 0;
}

static int sync_with(int call, int fd)
{
    char path[PATH_MAX];
    const char *name = ours(fd, path);
    if (!name)
        return (int)syscall(call, fd);
    int result = -1;
    for (int64_t slept = 0; slept < control[SYNC_DELAY]; slept += 5000)
        usleep(5000);
    pthread_mutex_lock(&mutex);
    kill_at(BEFORE_SYNC, name);
    if (fails(SYNC_ERROR, SYNCS_LEFT, name)) {
        int error = errno;
        record(OP_SYNC_FAILED, name, 0, NULL, 0);
        errno = error;
    } else if ((result = (int)syscall(call, fd)) == 0) {
        record(OP_SYNC, name, 0, NULL, 0);
        kill_at(AFTER_SYNC, name);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int fsync(int fd) { return sync_with(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_with(SYS_fdatasync, fd); }

static int cut(int fd, off_t length)
{
    char path[PATH_MAX];
    const char *name = ours(fd, path);
    if (!name)
        return (int)syscall(SYS_ftruncate, fd, length);
    int result = -1;
    struct stat found;
    pthread_mutex_lock(&mutex);
    kill_at(BEFORE_WRITE, name);
    int grows = fstat(fd, &found) != 0 || length > found.st_size;
    if (!refused(name, grows) && (result = (int)syscall(SYS_ftruncate, fd, length)) == 0)
        record(OP_TRUNCATE, name, (uint64_t)length, NULL, 0);
    pthread_mutex_unlock(&mutex);
    return result;
}

int ftruncate(int fd, off_t length) { return cut(fd, length); }
int ftruncate64(int fd, off64_t length) { return cut(fd, length); }

/* Opening makes a file, or empties one. */
static int open_with(int at, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    int changes = flags & (O_CREAT | O_TRUNC);
    const char *name = changes && (at == AT_FDCWD || *path == '/') ? name_at(path, buffer) : NULL;
    if (!name || *name == 0)
        return (int)syscall(SYS_openat, at, path, flags, mode);
    int fd = -1;
    struct stat found;
    pthread_mutex_lock(&mutex);
    int exists = syscall(SYS_newfstatat, AT_FDCWD, path, &found, 0) == 0;
    int makes = !exists && (flags & O_CREAT), empties = exists && (flags & O_TRUNC) && found.st_size > 0;
    if (makes || empties)
        kill_at(BEFORE_WRITE, name);
    if (!(makes || empties) || !refused(name, makes)) {
        fd = (int)syscall(SYS_openat, at, path, flags, mode);
        if (fd >= 0 && (makes || empties))
            record(makes ? OP_CREATE : OP_TRUNCATE, name, 0, NULL, 0);
    }
    pthread_mutex_unlock(&mutex);
    return fd;
}

#define MODE(flags, last)                                                                                              \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list more;                                                                                                  \
        va_start(more, last);                                                                                          \
        mode = (mode_t)va_arg(more, int);                                                                              \
        va_end(more);                                                                                                  \
    }

int open(const char *path, int flags, ...)
{
    MODE(flags, flags)
    return open_with(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    MODE(flags, flags)
    return open_with(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int openat(int at, const char *path, int flags, ...)
{
    MODE(flags, flags)
    return open_with(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...)
{
    MODE(flags, flags)
    return open_with(at, path, flags | O_LARGEFILE, mode);
}

int unlink(const char *path)
{
    char buffer[PATH_MAX];
    const char *name = name_at(path, buffer);
    /* SQLite removes what is not there, too. */
    if (!name || syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0)
        return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    int result = -1;
    pthread_mutex_lock(&mutex);
    kill_at(BEFORE_WRITE, name);
    if (!refused(name, 0) && (result = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0)) == 0)
        record(OP_UNLINK, name, 0, NULL, 0);
    pthread_mutex_unlock(&mutex);
    return result;
}

int rename(const char *from, const char *to)
{
    char from_buffer[PATH_MAX], to_buffer[PATH_MAX];
    const char *name = name_at(from, from_buffer), *new_name = name_at(to, to_buffer);
    if (!name || !new_name)
        return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    int result = -1;
    pthread_mutex_lock(&mutex);
    kill_at(BEFORE_WRITE, name);
    if (!refused(name, 1) && (result = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0)) == 0)
        record(OP_RENAME, name, 0, new_name, strlen(new_name));
    pthread_mutex_unlock(&mutex);
    return result;
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    int result = (int)syscall(SYS_clock_gettime, id, at);
    if (result == 0 && control && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        int64_t nanoseconds = at->tv_nsec + control[CLOCK_AHEAD_MS] % 1000 * 1000000;
        at->tv_sec += control[CLOCK_AHEAD_MS] / 1000;
        at->tv_sec += nanoseconds < 0 ? -1 : nanoseconds / 1000000000;
        at->tv_nsec = nanoseconds < 0 ? nanoseconds + 1000000000 : nanoseconds % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

/* librdkafka waits until a time of the wall clock. As with the real one, such a wait gets longer or shorter when the
 * clock is set; so it is looked at in slices of real time. */
static int wait_until(pthread_cond_t *condition, pthread_mutex_t *held, const struct timespec *until)
{
    const int64_t SLICE = 20000000;
    for (;;) {
        struct timespec now, end;
        clock_gettime(CLOCK_REALTIME, &now);
        int64_t seconds = until->tv_sec - now.tv_sec;
        int64_t left = seconds > 1 ? SLICE : seconds < -1 ? 0 : seconds * 1000000000 + until->tv_nsec - now.tv_nsec;
        int64_t slice = left < 0 ? 0 : left < SLICE ? left : SLICE;
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_nsec += slice;
        if (end.tv_nsec >= 1000000000) {
            end.tv_sec++;
            end.tv_nsec -= 1000000000;
        }
        int result = pthread_cond_clockwait(condition, held, CLOCK_MONOTONIC, &end);
        if (result != ETIMEDOUT || slice < SLICE)
            return result;
    }
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *held, const struct timespec *until)
{
    return wait_until(condition, held, until);
}

/* Its build takes the threads of C11 where the compiler has them; in glibc these are the same objects. */
int cnd_timedwait(cnd_t *condition, mtx_t *held, const struct timespec *until)
{
    int result = wait_until((pthread_cond_t *)condition, (pthread_mutex_t *)held, until);
    return result == 0 ? thrd_success : result == ETIMEDOUT ? thrd_timedout : thrd_error;
}
