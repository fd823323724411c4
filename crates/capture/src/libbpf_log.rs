//! What libbpf says while it works: kept back to explain a failure, or shown with `--debug`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use libbpf_rs::{PrintLevel, set_print};

/// A verifier log can have megabytes; the telling lines are the last ones.
const KEPT_BYTES: usize = 64 * 1024;

static KEPT: Mutex<String> = Mutex::new(String::new());
static DEBUG: AtomicBool = AtomicBool::new(false);

/// Shows what libbpf has to say, verifier logs included, on stderr.
pub fn set_debug(debug: bool) {
    DEBUG.store(debug, Ordering::Relaxed);
}

/// Runs `work` and returns with its result what libbpf said meanwhile, its end if it is long.
pub(crate) fn listen<T>(work: impl FnOnce() -> T) -> (T, String) {
    take();
    let previous = set_print(Some((PrintLevel::Info, keep)));
    let result = work();
    set_print(previous);
    (result, take())
}

fn keep(level: PrintLevel, message: String) {
    // How libbpf resolves each relocation helps nobody; verifier logs are warnings.
    if level == PrintLevel::Debug {
        return;
    }
    if DEBUG.load(Ordering::Relaxed) {
        eprint!("{message}");
    }
    let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    kept.push_str(&message);
    if kept.len() > 2 * KEPT_BYTES {
        let mut cut = kept.len() - KEPT_BYTES;
        while !kept.is_char_boundary(cut) {
            cut += 1;
        }
        kept.drain(..cut);
    }
}

fn take() -> String {
    std::mem::take(&mut *KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// The lines of a verifier log that say what is wrong, if there is such a log.
pub(crate) fn verifier_complaint(log: &str) -> Option<String> {
    let (_, log) = log.rsplit_once("BEGIN PROG LOAD LOG --")?;
    let (log, _) = log.split_once("-- END PROG LOAD LOG").unwrap_or((log, ""));
    // Before the closing statistics stand the instruction and the complaint.
    let lines: Vec<_> = log
        .lines()
        .map(str::trim)
        .filter(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.starts_with("verification time")
                && !line.starts_with("stack depth")
                && !line.starts_with(';')
                && !line.starts_with("mark_precise")
        })
        .collect();
    let telling = &lines[lines.len().saturating_sub(2)..];
    (!telling.is_empty()).then(|| telling.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaint_is_the_last_instruction_and_what_is_wrong_with_it() {
        let log = "libbpf: prog 'read_copy': -- BEGIN PROG LOAD LOG --\n\
                   0: R1=ctx() R10=fp0\n; int x @ y.c:3\n596: (85) call bpf_probe_read_user#112\n\
                   R2 unbounded memory access\nprocessed 80 insns (limit 1000000)\n\
                   -- END PROG LOAD LOG --\nlibbpf: failed to load object\n";
        assert_eq!(
            verifier_complaint(log).as_deref(),
            Some("596: (85) call bpf_probe_read_user#112 | R2 unbounded memory access")
        );
        assert_eq!(
            verifier_complaint("libbpf: map 'ring': failed to create"),
            None
        );
    }
}
