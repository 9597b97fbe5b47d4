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
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

enum { PAGE = 4096 };

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
        default: failed = 1;
        }
        puts(failed ? "failed" : "ok");
        fflush(stdout);
    }
    return 0;
}
