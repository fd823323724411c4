//! When a thread gets a processor. What is not read in time is lost, and programs that are held wait for
//! us, while the machine's processors may all be busy.

use std::io;

/// How much more readily than others a thread gets a processor. An equal share would be too little to keep
/// up with several busy targets. It takes no more time than its work needs.
const NICE: i32 = -10;

/// A thread with a shorter slice than the running one gets the processor as soon as it wakes up, instead of
/// when the other's slice is over, which takes up to some milliseconds. The shortest that there is, in ns.
/// Linux 6.12 (kernel/sched/fair.c: `PREEMPT_SHORT`; kernel/sched/syscalls.c); older kernels ignore it.
const SLICE_NS: u64 = 100_000;

/// Has the calling thread run soon after it wakes up, as far as we may: the priority needs CAP_SYS_NICE, the
/// slice needs nothing. A thread for which the user chose another policy is left alone.
pub fn run_promptly() {
    let Ok(mut attributes) = attributes() else {
        return;
    };
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.sched_runtime = SLICE_NS;
    let nice = attributes.sched_nice;
    attributes.sched_nice = (nice + NICE).max(-20);
    if set_attributes(&attributes).is_err() {
        attributes.sched_nice = nice;
        // Without either, a busy machine loses more, which the summary tells.
        let _ = set_attributes(&attributes);
    }
}

fn attributes() -> io::Result<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let calling_thread: libc::pid_t = 0;
    let flags: libc::c_uint = 0;
    // SAFETY: `attributes` is valid for writes of its size, which the kernel is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            calling_thread,
            &raw mut attributes,
            size_of::<libc::sched_attr>() as libc::c_uint,
            flags,
        )
    };
    checked(result).map(|()| attributes)
}

fn set_attributes(attributes: &libc::sched_attr) -> io::Result<()> {
    let calling_thread: libc::pid_t = 0;
    let flags: libc::c_uint = 0;
    // SAFETY: `attributes` begins with its size, and is only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            calling_thread,
            &raw const *attributes,
            flags,
        )
    };
    checked(result)
}

fn checked(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_to_run_promptly_has_the_shortest_slice() {
        let (before, after) = std::thread::spawn(|| {
            let before = attributes().unwrap();
            run_promptly();
            (before, attributes().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(after.sched_policy, before.sched_policy);
        let lowered = (before.sched_nice + NICE).max(-20);
        // Without CAP_SYS_NICE it stays.
        assert!([lowered, before.sched_nice].contains(&after.sched_nice));
        // Kernels before 6.12 have no slices of threads' own, and tell of none.
        assert!(
            [SLICE_NS, 0].contains(&after.sched_runtime),
            "{}",
            after.sched_runtime
        );
    }

    #[test]
    fn a_policy_that_the_user_chose_stays() {
        let after = std::thread::spawn(|| {
            let mut chosen = attributes().unwrap();
            chosen.sched_policy = libc::SCHED_BATCH as u32;
            set_attributes(&chosen).unwrap();
            run_promptly();
            attributes().unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(after.sched_policy, libc::SCHED_BATCH as u32);
    }
}
