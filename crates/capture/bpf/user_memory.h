/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Reading the target's memory.
 */
#ifndef ECAPTURE_USER_MEMORY_H
#define ECAPTURE_USER_MEMORY_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

/* These programs are loaded as sleepable ones: memory that is paged out can be fetched. */
const volatile __u8 may_fault = 0;

/* Reads what is there. */
static __always_inline bool peek(void *to, __u64 length, __u64 address)
{
	return !bpf_probe_read_user(to, length, (void *)address);
}

static __always_inline bool peek_word(__u64 *word, __u64 address)
{
	return peek(word, sizeof(*word), address);
}

/* Reads what is there, which it is nearly always; the fallback is for memory that was paged out.
 * Not to be used while a record is reserved: nobody can read the ring beyond a reservation, and a
 * page fault can take long. */
static __always_inline bool read_user(void *to, __u64 length, __u64 address)
{
	if (peek(to, length, address))
		return true;
	return may_fault && !bpf_copy_from_user(to, length, (void *)address);
}

static __always_inline bool read_word(__u64 *word, __u64 address)
{
	return read_user(word, sizeof(*word), address);
}

#endif
