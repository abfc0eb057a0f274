/* Masking: finds secrets, and their usual encodings, in output that comes in pieces.
 *
 * A form is a text to mask: a value itself, each of its lines, and their base64 and URL encodings. Every byte of every
 * occurrence of a form is masked, whatever else it is part of. A run of masked bytes becomes one "***".
 *
 * A byte is held back as long as it may be part of an occurrence that begins at or before it and is not whole yet.
 * After a while of silence, and at the end of the output, what is held back is let go: the first bytes as they are, a
 * quarter of the form and never more than three, the rest masked. If the form is completed later, all further bytes of
 * it are masked as well. So no more than these first bytes of a form are ever let through. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_FORM = 4, MOST_PLAIN = 3, MOST_SKIPPED = 16 };

struct form { uint8_t *bytes; size_t length; };

/* Ordered by their bytes, none twice. */
static struct form *forms;
static size_t form_count, form_room, longest_form;

/* The forms that begin with a byte: from `first[byte]` up to `first[byte + 1]`. */
static size_t first[257];

/* The search looks at the last two bytes of a window as long as the shortest form, at most MOST_SKIPPED: how far it
 * moves on before a form can begin there; 0: one may begin at the window. */
static size_t window;
static uint8_t (*skips)[256];

/* ------------------------------------------------------------------------------------------------------------- forms */

/* Adds a form that `bytes`, which were allocated, are. False: there is no memory. */
static bool add_form(uint8_t *bytes, size_t length)
{
    if (length < LEAST_FORM) {
        free(bytes);
        return true;
    }
    if (form_count == form_room) {
        form_room = form_room ? 2 * form_room : 64;
        struct form *more = realloc(forms, form_room * sizeof *forms);
        if (!more)
            return false;
        forms = more;
    }
    forms[form_count++] = (struct form){bytes, length};
    return true;
}

static bool add_text(const uint8_t *text, size_t length)
{
    uint8_t *bytes = malloc(length + !length);
    if (!bytes)
        return false;
    memcpy(bytes, text, length);
    return add_form(bytes, length);
}

static bool is_blank(uint8_t byte) { return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n'; }

/* Adds each line, without blanks around it: as part of an indented text it is masked as well. */
static bool add_lines(const uint8_t *text, size_t length)
{
    for (size_t begin = 0; begin <= length;) {
        const uint8_t *newline = begin < length ? memchr(text + begin, '\n', length - begin) : NULL;
        size_t end = newline ? (size_t)(newline - text) : length, next = end + 1;
        for (; begin < end && is_blank(text[begin]); begin++) {}
        for (; begin < end && is_blank(text[end - 1]); end--) {}
        if (!add_text(text + begin, end - begin))
            return false;
        begin = next;
    }
    return true;
}

static const char alphabets[2][65] = {
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
};

/* The six bits from `bit` on, of a text with `before` zero bytes before it and zeros behind it. */
static unsigned six_bits(const uint8_t *text, size_t length, size_t before, size_t bit)
{
    unsigned value = 0;
    for (size_t i = bit; i < bit + 6; i++) {
        size_t byte = i / 8;
        unsigned is_set = byte < before || byte >= before + length ? 0 : (unsigned)text[byte - before] >> (7 - i % 8) & 1;
        value = value << 1 | is_set;
    }
    return value;
}

/* Adds what is certain of the base64 of anything that the text is part of, `before` bytes behind a multiple of three. */
static bool add_base64_within(const uint8_t *text, size_t length, size_t before, const char *alphabet)
{
    size_t begin = (8 * before + 5) / 6, end = 8 * (before + length) / 6;
    uint8_t *bytes = malloc(end - begin + 1);
    if (!bytes)
        return false;
    for (size_t i = begin; i < end; i++)
        bytes[i - begin] = (uint8_t)alphabet[six_bits(text, length, before, 6 * i)];
    return add_form(bytes, end - begin);
}

/* Adds the base64 of the text alone, with its padding; `columns`: each of the lines that programs make of it, 0: one. */
static bool add_base64_alone(const uint8_t *text, size_t length, const char *alphabet, size_t columns)
{
    size_t whole = (length + 2) / 3 * 4, used = (8 * length + 5) / 6;
    uint8_t *bytes = malloc(whole + 1);
    if (!bytes)
        return false;
    for (size_t i = 0; i < whole; i++)
        bytes[i] = i < used ? (uint8_t)alphabet[six_bits(text, length, 0, 6 * i)] : '=';
    bool added = true;
    for (size_t begin = 0; added && begin < whole; begin += columns ? columns : whole) {
        size_t left = whole - begin;
        added = add_text(bytes + begin, columns && columns < left ? columns : left);
    }
    explicit_bzero(bytes, whole);
    free(bytes);
    return added;
}

static bool is_plain(uint8_t byte, const char *more)
{
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9') ||
           (byte && strchr("-._~", byte)) || (byte && strchr(more, byte));
}

/* Adds the URL encoding with these digits, and these characters beside those that are never encoded. */
static bool add_url(const uint8_t *text, size_t length, const char *digits, const char *more, bool plus)
{
    uint8_t *bytes = malloc(3 * length + 1);
    size_t n = 0;
    if (!bytes)
        return false;
    for (size_t i = 0; i < length; i++)
        if (is_plain(text[i], more))
            bytes[n++] = text[i];
        else if (plus && text[i] == ' ')
            bytes[n++] = '+';
        else
            bytes[n++] = '%', bytes[n++] = (uint8_t)digits[text[i] >> 4], bytes[n++] = (uint8_t)digits[text[i] & 15];
    return add_form(bytes, n);
}

/* Adds all forms of a value. False: there is no memory. */
static bool add_forms(const uint8_t *value, size_t length)
{
    static const char *const digits[] = {"0123456789ABCDEF", "0123456789abcdef"};
    /* Those of RFC 3986 alone; of encodeURIComponent; of Python's quote; of both. */
    static const char *const more[] = {"", "!'()*", "/", "!'()*/"};
    size_t whole = length;
    /* A newline at the end belongs to the file of a value, and to what prints it. */
    for (; length && (value[length - 1] == '\n' || value[length - 1] == '\r'); length--) {}
    if (length < LEAST_FORM)
        return true;
    bool added = add_text(value, length) && add_lines(value, length);
    uint8_t *with_newline = malloc(length + 1);
    if (!with_newline)
        return false;
    memcpy(with_newline, value, length);
    with_newline[length] = '\n';
    for (int a = 0; a < 2; a++) {
        for (size_t before = 0; before < 3; before++)
            added = added && add_base64_within(value, length, before, alphabets[a]);
        for (size_t columns = 0; columns <= 76; columns += columns ? 12 : 64) /* none, 64, 76 */
            added = added && add_base64_alone(value, length, alphabets[a], columns) &&
                    add_base64_alone(with_newline, length + 1, alphabets[a], columns) &&
                    add_base64_alone(value, whole, alphabets[a], columns);
    }
    explicit_bzero(with_newline, length + 1);
    free(with_newline);
    for (int i = 0; i < 16; i++)
        added = added && add_url(value, length, digits[i & 1], more[i >> 2], i & 2);
    return added;
}

static int compare_forms(const void *one, const void *other)
{
    const struct form *a = one, *b = other;
    int order = memcmp(a->bytes, b->bytes, a->length < b->length ? a->length : b->length);
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

/* Makes the tables of the search, after the last form. False: there is no memory. */
static bool prepare_search(void)
{
    if (!form_count)
        return true;
    qsort(forms, form_count, sizeof *forms, compare_forms);
    size_t kept = 1;
    for (size_t i = 1; i < form_count; i++)
        if (compare_forms(&forms[i], &forms[kept - 1]))
            forms[kept++] = forms[i];
        else
            free(forms[i].bytes);
    form_count = kept;
    window = MOST_SKIPPED;
    for (size_t i = 0; i < form_count; i++) {
        window = forms[i].length < window ? forms[i].length : window;
        longest_form = forms[i].length > longest_form ? forms[i].length : longest_form;
        first[forms[i].bytes[0] + 1]++;
    }
    for (int byte = 0; byte < 256; byte++)
        first[byte + 1] += first[byte];
    if (!(skips = malloc(256 * sizeof *skips)))
        return false;
    memset(skips, (int)window - 1, 256 * sizeof *skips);
    for (size_t i = 0; i < form_count; i++)
        for (size_t j = 1; j < window; j++) {
            uint8_t *skip = &skips[forms[i].bytes[j - 1]][forms[i].bytes[j]], here = (uint8_t)(window - 1 - j);
            *skip = here < *skip ? here : *skip;
        }
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- search */

/* What begins at a place: the longest whole form, 0: none; whether one begins that is not whole yet, and how many of
 * its bytes may be let through. */
struct found { size_t whole, plain; bool is_open; };

static struct found look(const uint8_t *text, size_t n)
{
    struct found found = {0, MOST_PLAIN, false};
    size_t low = first[text[0]], high = first[text[0] + 1], depth = 1;
    /* The forms from `low` up to `high` begin with the first `depth` bytes of the text. */
    for (; low < high; depth++) {
        if (forms[low].length == depth) {
            found.whole = depth;
            low++;
        }
        if (depth == n)
            break;
        while (low < high && forms[low].bytes[depth] < text[depth])
            low++;
        while (low < high && forms[high - 1].bytes[depth] > text[depth])
            high--;
    }
    for (; low < high; low++) {
        found.is_open = true;
        found.plain = forms[low].length / 4 < found.plain ? forms[low].length / 4 : found.plain;
    }
    return found;
}

/* Returns the first place from `at` on where a form is, or begins; `end`: there is none. */
static size_t search(const uint8_t *text, size_t at, size_t end, struct found *found)
{
    while (at + window <= end) {
        size_t skip = skips[text[at + window - 2]][text[at + window - 1]];
        if (!skip) {
            *found = look(text + at, end - at);
            if (found->whole || found->is_open)
                return at;
            skip = 1;
        }
        at += skip;
    }
    for (; at < end; at++) {
        *found = look(text + at, end - at);
        if (found->is_open)
            return at;
    }
    return end;
}

/* --------------------------------------------------------------------------------------------------------- one stream */

/* The output of one source from the first byte on that is not decided about. `text` has room for the longest form and
 * a piece behind it. `given` bytes were passed on, masked or not; those before `covered` are masked. */
struct stream { uint8_t *text; size_t length, given, covered; bool in_mask; };

/* Takes bytes that come out of the masking. */
typedef void emit(int source, const uint8_t *bytes, size_t n);

/* Passes on the bytes up to `until`, which are decided. */
static void pass(struct stream *stream, int source, size_t until, emit *take)
{
    while (stream->given < until) {
        size_t end = until;
        if (stream->given < stream->covered) {
            end = stream->covered < until ? stream->covered : until;
            if (!stream->in_mask)
                take(source, (const uint8_t *)"***", 3);
            stream->in_mask = true;
        } else {
            take(source, stream->text + stream->given, end - stream->given);
            stream->in_mask = false;
        }
        stream->given = end;
    }
}

/* Notes a whole form that begins at a place up to which all was passed on. */
static void cover(struct stream *stream, size_t at, size_t whole)
{
    if (whole && at + whole > stream->covered)
        stream->covered = at + whole;
}

/* Masks the bytes that have come, and passes on what is decided. */
static void mask(struct stream *stream, int source, emit *take)
{
    struct found found;
    size_t at = 0;
    while ((at = search(stream->text, at, stream->length, &found)) < stream->length) {
        pass(stream, source, at, take);
        if (found.is_open)
            break;
        cover(stream, at++, found.whole);
    }
    pass(stream, source, at, take);
    stream->length -= at;
    stream->given -= at;
    stream->covered = stream->covered > at ? stream->covered - at : 0;
    memmove(stream->text, stream->text + at, stream->length);
}

/* Lets go what is held back. What was let go may still turn out to be the beginning of a form. */
static void let_go(struct stream *stream, int source, emit *take)
{
    size_t plain_end = stream->length;
    for (size_t at = 0; at < plain_end; at++) {
        struct found found = look(stream->text + at, stream->length - at);
        pass(stream, source, at, take);
        cover(stream, at, found.whole);
        if (found.is_open && at + found.plain < plain_end)
            plain_end = at + found.plain;
    }
    pass(stream, source, plain_end, take);
    cover(stream, plain_end, stream->length - plain_end);
    pass(stream, source, stream->length, take);
}
