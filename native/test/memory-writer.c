/*
 * Stands in for QEMU in tests of the dirty logs: maps the file argv[1] of argv[2] bytes and does to it what
 * the lines on its standard input say, answering each with "ok".
 *
 *   w PAGE BYTE    write one byte of the page
 *   k PAGE         let the kernel write the page (getrandom)
 *   r PAGE COUNT   MADV_REMOVE
 *   n PAGE COUNT   MADV_DONTNEED
 *   p PAGE COUNT   fallocate PUNCH_HOLE
 *   m              map the file once more
 *   h PAGE         read the page, and answer with "ok" and its FNV-1a of 64 bits
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

enum { PAGE = 4096 };

static unsigned long long hash(const unsigned char *page)
{
    unsigned long long hash = 0xcbf29ce484222325;
    for (int i = 0; i < PAGE; i++)
        hash = (hash ^ page[i]) * 0x100000001b3;
    return hash;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    size_t length = strtoull(argv[2], NULL, 10);
    int fd = open(argv[1], O_RDWR);
    char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || memory == MAP_FAILED)
        return 3;
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        char command;
        unsigned long page = 0, number = 0;
        int failed = 0;
        if (sscanf(line, "%c %lu %lu", &command, &page, &number) < 1)
            return 4;
        char *at = memory + page * PAGE;
        switch (command) {
        case 'w': at[page % PAGE] = (char)number; break;
        case 'k': failed = getrandom(at, 256, 0) != 256; break;
        case 'r': failed = madvise(at, number * PAGE, MADV_REMOVE); break;
        case 'n': failed = madvise(at, number * PAGE, MADV_DONTNEED); break;
        case 'p': failed = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, number * PAGE); break;
        case 'm': failed = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED; break;
        case 'h': printf("ok %llx\n", hash((unsigned char *)at)); fflush(stdout); continue;
        default: failed = 1;
        }
        puts(failed ? "failed" : "ok");
        fflush(stdout);
    }
    return 0;
}
