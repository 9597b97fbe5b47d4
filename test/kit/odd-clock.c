/*
 * Preloaded into processes of a host in tests: its wall clock is off by what a file says at that moment, and the clocks that
 * nobody can set run faster or slower than they are. Timers of the kernel run as they do.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define CLOCKS 12
#define SECOND_NS 1000000000LL

static const volatile int64_t *wall_offset_ns;
static double rate = 1;
static int64_t started_ns[CLOCKS];

static int64_t real_ns(clockid_t clock)
{
	struct timespec now = {0, 0};
	syscall(SYS_clock_gettime, clock, &now);
	return now.tv_sec * SECOND_NS + now.tv_nsec;
}

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("ODD_CLOCK_FILE");
	const char *given = getenv("ODD_CLOCK_RATE");
	if (path) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
		if (fd >= 0)
			close(fd);
		if (mapped != MAP_FAILED)
			wall_offset_ns = mapped;
	}
	if (given)
		rate = strtod(given, NULL);
	for (int clock = 0; clock < CLOCKS; clock++)
		started_ns[clock] = real_ns(clock);
}

static int64_t odd_ns(clockid_t clock)
{
	int64_t now_ns = real_ns(clock);
	switch (clock) {
	case CLOCK_REALTIME:
	case CLOCK_REALTIME_COARSE:
		return wall_offset_ns ? now_ns + *wall_offset_ns : now_ns;
	case CLOCK_MONOTONIC:
	case CLOCK_MONOTONIC_RAW:
	case CLOCK_MONOTONIC_COARSE:
	case CLOCK_BOOTTIME:
		return started_ns[clock] + (int64_t)((now_ns - started_ns[clock]) * rate);
	default:
		return now_ns;
	}
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = syscall(SYS_clock_gettime, clock, now);
	if (result == 0) {
		int64_t ns = odd_ns(clock);
		now->tv_sec = ns / SECOND_NS;
		now->tv_nsec = ns % SECOND_NS;
	}
	return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	int64_t ns = odd_ns(CLOCK_REALTIME);
	(void)zone;
	now->tv_sec = ns / SECOND_NS;
	now->tv_usec = ns % SECOND_NS / 1000;
	return 0;
}

time_t time(time_t *now)
{
	time_t seconds = odd_ns(CLOCK_REALTIME) / SECOND_NS;
	if (now)
		*now = seconds;
	return seconds;
}
