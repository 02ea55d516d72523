/* Stands between a process and the files of one directory: lets writes and fsyncs fail on demand, kills the process at
 * one of them, and records what is written and what is fsynced. Puts the wall clock forward and back, too. Loaded with
 * LD_PRELOAD; see shim.rs.
 *
 * SHIM_DIR      the directory, as the kernel names it
 * SHIM_CONTROL  a file of SLOTS int64, mapped, so that it can be changed at any moment (enum below)
 * SHIM_LOG      where the record goes; none without it
 *
 * The lock file and the index in shared memory (-shm) are left alone: neither survives a crash. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
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
       KILL_AT, KILL_LEFT, KILLED, CLOCK_AHEAD_MS, SLOTS };
enum { OP_WRITE, OP_SYNC, OP_TRUNCATE, OP_UNLINK, OP_SYNC_FAILED };

enum { NOWHERE, BEFORE_WRITE, IN_WRITE, BEFORE_SYNC, AFTER_SYNC }; /* KILL_AT */

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

/* 0 the database, 1 its write-ahead log, 2 its rollback journal, 3 the directory; -1 what is none of our business */
static int file_of(const char *path)
{
    if (strncmp(path, dir, dir_length) != 0)
        return -1;
    path += dir_length;
    if (*path == 0)
        return 3;
    if (strcmp(path, "/journal.db") == 0)
        return 0;
    if (strcmp(path, "/journal.db-wal") == 0)
        return 1;
    return strcmp(path, "/journal.db-journal") == 0 ? 2 : -1;
}

static int ours(int fd)
{
    char link[64], path[PATH_MAX];
    if (!control)
        return -1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 0)
        return -1;
    path[length] = 0;
    return file_of(path);
}

static void record(uint32_t op, int file, uint64_t offset, const void *data, uint64_t length)
{
    if (log_fd < 0)
        return;
    struct { uint32_t op, file; uint64_t offset, length; } head = { op, (uint32_t)file, offset, length };
    struct iovec parts[2] = { { &head, sizeof head }, { (void *)data, op == OP_WRITE ? length : 0 } };
    ssize_t all = (ssize_t)(parts[0].iov_len + parts[1].iov_len);
    if (syscall(SYS_writev, log_fd, parts, 2) != all) {
        fprintf(stderr, "shim: the record is incomplete\n");
        _exit(99);
    }
}

static int fails(int error, int left)
{
    if (!control[error] || !control[left])
        return 0;
    if (control[left] > 0)
        control[left]--;
    control[FAILED]++;
    errno = (int)control[error];
    return 1;
}

/* Whether this is the place at which the process is to be killed. A truncation and a deletion count as writes. */
static int killed_at(int place)
{
    return control[KILL_AT] == place && control[KILL_LEFT] > 0 && --control[KILL_LEFT] == 0;
}

static void die(void)
{
    control[KILL_AT] = NOWHERE;
    control[KILLED]++;
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static void kill_at(int place)
{
    if (killed_at(place))
        die();
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
    int file = ours(fd);
    if (file < 0)
        return syscall(SYS_pwrite64, fd, data, length, offset);
    ssize_t written = -1;
    pthread_mutex_lock(&mutex);
    control[SEEN]++;
    kill_at(BEFORE_WRITE);
    if (killed_at(IN_WRITE)) {
        syscall(SYS_pwrite64, fd, data, length / 2, offset);
        die();
    }
    if (!fails(WRITE_ERROR, WRITES_LEFT) && !no_space(fd, (uint64_t)offset + length)) {
        written = syscall(SYS_pwrite64, fd, data, length, offset);
        if (written > 0)
            record(OP_WRITE, file, (uint64_t)offset, data, (uint64_t)written);
    }
    pthread_mutex_unlock(&mutex);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return write_at(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return write_at(fd, data, length, offset); }

ssize_t write(int fd, const void *data, size_t length)
{
    if (ours(fd) < 0)
        return syscall(SYS_write, fd, data, length);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t written = write_at(fd, data, length, offset);
    if (written > 0)
        lseek(fd, offset + written, SEEK_SET);
    return written;
}

static int sync_with(int call, int fd)
{
    int file = ours(fd);
    if (file < 0)
        return (int)syscall(call, fd);
    int result = -1;
    for (int64_t slept = 0; slept < control[SYNC_DELAY]; slept += 5000)
        usleep(5000);
    pthread_mutex_lock(&mutex);
    kill_at(BEFORE_SYNC);
    if (fails(SYNC_ERROR, SYNCS_LEFT)) {
        int error = errno;
        record(OP_SYNC_FAILED, file, 0, NULL, 0);
        errno = error;
    } else if ((result = (int)syscall(call, fd)) == 0) {
        record(OP_SYNC, file, 0, NULL, 0);
        kill_at(AFTER_SYNC);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int fsync(int fd) { return sync_with(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_with(SYS_fdatasync, fd); }

static int cut(int fd, off_t length)
{
    int file = ours(fd);
    if (file < 0)
        return (int)syscall(SYS_ftruncate, fd, length);
    int result = -1;
    pthread_mutex_lock(&mutex);
    kill_at(BEFORE_WRITE);
    if (!fails(WRITE_ERROR, WRITES_LEFT) && (result = (int)syscall(SYS_ftruncate, fd, length)) == 0)
        record(OP_TRUNCATE, file, (uint64_t)length, NULL, 0);
    pthread_mutex_unlock(&mutex);
    return result;
}

int ftruncate(int fd, off_t length) { return cut(fd, length); }
int ftruncate64(int fd, off64_t length) { return cut(fd, length); }

int unlink(const char *path)
{
    int file = control ? file_of(path) : -1;
    pthread_mutex_lock(&mutex);
    if (file >= 0)
        kill_at(BEFORE_WRITE);
    int result = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (file >= 0 && result == 0)
        record(OP_UNLINK, file, 0, NULL, 0);
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
