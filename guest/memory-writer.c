/*
 * Writes for ever to random pages of a buffer, so that dirty logs can be compared on a guest that writes.
 *
 *   memory-writer PAGES [INTERVAL_MS]   every INTERVAL_MS (10) writes to up to 32 of PAGES pages
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE_BYTES 4096
#define WORDS_PER_PAGE (PAGE_BYTES / sizeof(uint64_t))
#define WRITES_PER_BURST 32
#define PAGES_MAX (1L << 20)
#define INTERVAL_MS_MAX 10000

/* xorshift64 (Marsaglia 2003): the sequence is the same in every run. */
static uint64_t next_random(void) {
    static uint64_t state = UINT64_C(0x9e3779b97f4a7c15);
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

int main(int count, char **arguments) {
    long pages = count > 1 ? atol(arguments[1]) : 0;
    long interval_ms = count > 2 ? atol(arguments[2]) : 10;
    if (pages < 1 || pages > PAGES_MAX || interval_ms < 0 || interval_ms > INTERVAL_MS_MAX) {
        fprintf(stderr, "usage: memory-writer PAGES [INTERVAL_MS]\n");
        return 2;
    }
    volatile uint64_t *words = mmap(NULL, (size_t)pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) {
        perror("memory-writer");
        return 1;
    }
    struct timespec interval = {interval_ms / 1000, interval_ms % 1000 * 1000000};
    for (;;) {
        for (int i = 0; i < WRITES_PER_BURST; i++) {
            uint64_t page = next_random() % (uint64_t)pages;
            words[page * WORDS_PER_PAGE + next_random() % WORDS_PER_PAGE] = next_random();
        }
        nanosleep(&interval, NULL);
    }
}
