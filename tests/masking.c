/* The masking of the recorder alone: what it makes of each piece of output that it is given.
 *
 * Standard input: the number of values; each value; then for each step 'd' and bytes that came, or 't', a silence.
 * Standard output: what was passed on in each step. Numbers have four bytes; a text is its length and its bytes. */

#define _GNU_SOURCE
#include <stdio.h>

#include "../fastlane_grpc/recorder/masking.h"

static uint8_t passed[1 << 20];
static size_t passed_size;

static void keep(int source, const uint8_t *bytes, size_t n)
{
    (void)source;
    memcpy(passed + passed_size, bytes, n);
    passed_size += n;
}

static uint32_t number(void)
{
    uint32_t value;
    return fread(&value, sizeof value, 1, stdin) == 1 ? value : 0;
}

int main(void)
{
    static uint8_t piece[1 << 20];
    for (uint32_t left = number(); left; left--) {
        uint32_t n = number();
        if (fread(piece, 1, n, stdin) != n || !add_forms(piece, n))
            return 1;
    }
    if (!prepare_search())
        return 1;
    struct stream stream = {.text = malloc(longest_form + sizeof piece)};
    for (int step; form_count && (step = getchar()) != EOF; passed_size = 0) {
        if (step == 'd') {
            uint32_t n = number();
            if (fread(stream.text + stream.length, 1, n, stdin) != n)
                return 1;
            stream.length += n;
            mask(&stream, 0, keep);
        } else
            let_go(&stream, 0, keep);
        uint32_t n = (uint32_t)passed_size;
        fwrite(&n, sizeof n, 1, stdout);
        fwrite(passed, 1, n, stdout);
    }
    return 0;
}
