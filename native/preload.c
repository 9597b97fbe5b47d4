/*
 * Loaded into QEMU with LD_PRELOAD. When QEMU maps the guest memory file, the mapping is registered with
 * userfaultfd for asynchronous write protection, so that another process can ask which pages were written
 * (PAGEMAP_SCAN); when QEMU gives guest memory back (balloon, free page reporting), that is reported, because
 * no page table tells it. QEMU also ends or stands still with its keeper: without one its guest would run on
 * unseen. Nothing else runs inside QEMU, and nothing here ever makes a call of QEMU's fail.
 *
 *   UNDERSTUDY_MEMORY      path of the guest memory file
 *   UNDERSTUDY_FD          an inherited SOCK_SEQPACKET socket; each message on it is a struct message
 *   UNDERSTUDY_KEEPER_PID  the process that QEMU is a child of, and without which it must not run
 *   UNDERSTUDY_KEEPER_END  what becomes of QEMU then: "stop" makes it stand still, once it has mapped its memory, for
 *                          the next keeper to take back; anything else ends it
 *
 * The kernel is called directly: looking up the next definition could map memory itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than Debian 12's headers. */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

enum { VERSION = 1 };
enum kind { HELLO = 1, DISCARD = 2 };
/* What a hello reached: the step that failed with `error`, or READY. */
enum step { READY = 0, FIND_FILE = 1, OPEN_UFFD = 2, FEATURES = 3, REGISTER = 4, PROTECT = 5 };

/* Faults that the kernel meets on behalf of QEMU (KVM, reading from a file) cannot be answered with the second one. */
enum reach { NOTHING = 0, EVERY_FAULT = 1, OWN_FAULTS = 2 };

/* Read by src/memory/preload-channel.ts. Offsets are from the start of the guest memory file. */
struct message {
    uint32_t kind, version;
    int32_t pid, step, error, reach; /* of a hello: which faults its userfaultfd can answer */
    uint64_t address; /* of a hello: where the mapping starts */
    uint64_t length, offset;
};

static int channel = -1;
static int may_stand_still;
static dev_t memory_device;
static ino_t memory_inode;
static char *memory_address;
static uint64_t memory_length, memory_offset;
static enum reach uffd_reach;

/* Waits for room: a discard must not get lost. Once the peer is gone there is nobody to lose it for. */
static void tell(const struct message *message, int fd)
{
    struct iovec part = { (void *)message, sizeof *message };
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { .bytes = { 0 } };
    struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };

    if (fd >= 0) {
        header.msg_control = &control;
        header.msg_controllen = sizeof control;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    while (sendmsg(channel, &header, MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

static void tell_hello(enum step step, int error, int uffd)
{
    struct message hello = { HELLO, VERSION, getpid(), step, error, uffd >= 0 ? uffd_reach : NOTHING,
                             (uintptr_t)memory_address, memory_length, memory_offset };
    tell(&hello, uffd);
}

static void tell_discard(uint64_t offset, uint64_t length)
{
    struct message discard = { DISCARD, VERSION, getpid(), 0, 0, 0, 0, length, offset };
    tell(&discard, -1);
}

/* Asynchronous write protection works with any of the three; the last one is open to every user. */
static int open_userfaultfd(void)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    uffd_reach = EVERY_FAULT;
    if (fd >= 0)
        return fd;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device >= 0) {
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(device);
    }
    if (fd >= 0)
        return fd;
    uffd_reach = OWN_FAULTS;
    return syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
}

static enum step protect(int *uffd)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    };
    struct uffdio_range range = { (uintptr_t)memory_address, memory_length };
    struct uffdio_register registration = { .range = range, .mode = UFFDIO_REGISTER_MODE_WP };
    struct uffdio_writeprotect protection = { .range = range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };

    if ((*uffd = open_userfaultfd()) < 0)
        return OPEN_UFFD;
    if (ioctl(*uffd, UFFDIO_API, &api) < 0)
        return FEATURES;
    if (ioctl(*uffd, UFFDIO_REGISTER, &registration) < 0)
        return REGISTER;
    if (ioctl(*uffd, UFFDIO_WRITEPROTECT, &protection) < 0)
        return PROTECT;
    return READY;
}

static int is_guest_memory(int fd)
{
    struct stat file;
    return channel >= 0 && fd >= 0 && fstat(fd, &file) == 0 && file.st_dev == memory_device &&
           file.st_ino == memory_inode;
}

/* The descriptor stays open here too: the protection ends with the last one. */
static void watch(void *address, size_t length, off_t offset)
{
    int uffd = -1;

    memory_address = address;
    memory_length = length;
    memory_offset = offset;
    /* From here on whoever looks for what a keeper left finds QEMU by its memory; before, one that stood still would be
     * lost for ever. */
    if (may_stand_still)
        prctl(PR_SET_PDEATHSIG, SIGSTOP);
    enum step step = protect(&uffd);
    if (step == READY) {
        tell_hello(READY, 0, uffd);
        return;
    }
    int error = errno;
    if (uffd >= 0)
        close(uffd);
    tell_hello(step, error, -1);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    void *mapped = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
    /* Includes MAP_SHARED_VALIDATE. */
    if (mapped != MAP_FAILED && (flags & MAP_SHARED) && is_guest_memory(fd)) {
        int kept = errno;
        watch(mapped, length, offset);
        errno = kept;
    }
    return mapped;
}

/* After the fact, so that the page is zero when the report arrives; one too many does no harm. */
int madvise(void *address, size_t length, int advice)
{
    int result = syscall(SYS_madvise, address, length, advice);
    int kept = errno;
    uintptr_t start = (uintptr_t)address, end = start + length;
    uintptr_t first = (uintptr_t)memory_address, last = first + memory_length;

    switch (advice) {
    case MADV_DONTNEED: /* changes nothing in a shared file, but drops soft-dirty bits with the page tables */
    case MADV_DONTNEED_LOCKED:
    case MADV_PAGEOUT:
    case MADV_FREE:
    case MADV_REMOVE:
        if (start < last && end > first) {
            start = start > first ? start : first;
            end = end < last ? end : last;
            tell_discard(start - first + memory_offset, end - start);
        }
    }
    errno = kept;
    return result;
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    int result = syscall(SYS_fallocate, fd, mode, offset, length);
    int kept = errno;

    /* Any mode but plain allocation and keeping the size changes what the file says. */
    if ((mode & ~FALLOC_FL_KEEP_SIZE) && is_guest_memory(fd))
        tell_discard(offset, length);
    errno = kept;
    return result;
}

/* On 64-bit Linux these are the same functions. */
void *mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));
int fallocate64(int, int, off_t, off_t) __attribute__((alias("fallocate")));
_Static_assert(sizeof(off_t) == 8, "64-bit Linux only");

/* QEMU's children shall not load this library: takes our entry out of LD_PRELOAD and leaves the others. */
static void leave_environment(void)
{
    Dl_info self;
    char *list = getenv("LD_PRELOAD");

    unsetenv("UNDERSTUDY_MEMORY");
    unsetenv("UNDERSTUDY_FD");
    unsetenv("UNDERSTUDY_KEEPER_PID");
    unsetenv("UNDERSTUDY_KEEPER_END");
    if (!list || !dladdr((void *)leave_environment, &self))
        return;
    char *rest = calloc(1, strlen(list) + 1), *copy = strdup(list), *position = NULL;
    if (rest && copy) {
        for (char *entry = strtok_r(copy, " :", &position); entry; entry = strtok_r(NULL, " :", &position)) {
            if (strcmp(entry, self.dli_fname) == 0)
                continue;
            if (*rest)
                strcat(rest, ":");
            strcat(rest, entry);
        }
        if (*rest)
            setenv("LD_PRELOAD", rest, 1);
        else
            unsetenv("LD_PRELOAD");
    }
    free(copy);
    free(rest);
}

/*
 * The kernel sends the signal when the THREAD ends that started us, not only its process. Node starts children from
 * the thread that asks for them, and a keeper does so from its main thread, which lives as long as it does. It is a
 * matter of our main thread, too, which is the one that maps guest memory. The signal is for the whole process, so that
 * SIGSTOP halts every vCPU; the kernel asks nobody, and QEMU cannot ignore it. A standby stands still too instead of ending: it may have become the one that acts, and only QEMU itself could
 * then change what its keeper's end means to it.
 */
static void share_fate_of_keeper(void)
{
    const char *keeper = getenv("UNDERSTUDY_KEEPER_PID"), *end = getenv("UNDERSTUDY_KEEPER_END");

    if (!keeper)
        return;
    may_stand_still = end && strcmp(end, "stop") == 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* It may have ended before it could be watched: then somebody else is our parent by now, and no guest runs yet. */
    if (getppid() != atoi(keeper))
        _exit(EXIT_FAILURE);
}

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("UNDERSTUDY_MEMORY"), *number = getenv("UNDERSTUDY_FD");
    struct stat file;

    share_fate_of_keeper();
    if (path && number) {
        channel = atoi(number);
        fcntl(channel, F_SETFD, FD_CLOEXEC);
        if (stat(path, &file) == 0) {
            memory_device = file.st_dev;
            memory_inode = file.st_ino;
        } else {
            tell_hello(FIND_FILE, errno, -1);
        }
    }
    leave_environment();
}
