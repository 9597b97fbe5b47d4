/*
 * Writes blocks of 4 KiB to the beginning of a device or file, one after the other, and waits for each until it is durable: what
 * a database does that commits, one transaction at a time.
 *
 *   disk-writer PATH COUNT
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_BYTES 4096
#define COUNT_MAX (1L << 20)

int main(int count, char **arguments) {
    long blocks = count > 2 ? atol(arguments[2]) : 0;
    if (blocks < 1 || blocks > COUNT_MAX) {
        fprintf(stderr, "usage: disk-writer PATH COUNT\n");
        return 2;
    }
    int file = open(arguments[1], O_WRONLY);
    if (file < 0) {
        perror(arguments[1]);
        return 1;
    }
    static char block[BLOCK_BYTES];
    for (long done = 0; done < blocks; done++) {
        memset(block, (int)(done % 255) + 1, BLOCK_BYTES);
        if (pwrite(file, block, BLOCK_BYTES, done * BLOCK_BYTES) != BLOCK_BYTES || fdatasync(file) != 0) {
            perror(arguments[1]);
            return 1;
        }
    }
    return 0;
}
