//! `ecapture generate`: man pages and shell completions, from the definition of the command line.

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Args, Generated};
use crate::failure::Failure;
use crate::output;
use crate::pipeline::Destination;

/// Runs the command.
pub(crate) fn run(what: &Generated) -> Result<(), Failure> {
    let shell = match what {
        Generated::Man { directory } => {
            return clap_mangen::generate_to(Args::command(), directory)
                .with_context(|| format!("writing man pages to {}", directory.display()))
                .map_err(Failure::Runtime);
        }
        Generated::Bash => Shell::Bash,
        Generated::Zsh => Shell::Zsh,
        Generated::Fish => Shell::Fish,
    };
    output::print(&completions(shell)).or_else(|error| Failure::output(error, &Destination::Stdout))
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ecapture", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn every_command_has_a_man_page_with_its_options() {
        let dir = tempfile::tempdir().unwrap();
        run(&Generated::Man {
            directory: dir.path().to_owned(),
        })
        .unwrap();
        let page = fs::read_to_string(dir.path().join("ecapture-gotls.1")).unwrap();
        for option in ["elfpath", "pcapfile", "mapsize"] {
            assert!(page.contains(&format!("\\-\\-{option}")), "{option}");
        }
        assert!(!page.contains("read\\-site"), "hidden options stay hidden");
        assert!(dir.path().join("ecapture.1").exists());
        assert!(dir.path().join("ecapture-inspect.1").exists());
        assert!(!dir.path().join("ecapture-generate.1").exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_told() {
        let directory = "/nonexistent/man".into();
        let Err(Failure::Runtime(error)) = run(&Generated::Man { directory }) else {
            panic!("it was written");
        };
        let error = format!("{error:#}");
        assert!(error.contains("man pages to /nonexistent/man: "), "{error}");
    }

    #[test]
    fn completions_know_the_options() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell);
            assert!(script.contains("mapsize"), "{shell}");
        }
    }

    /// The script has no mistake that bash itself could find, and completes.
    #[test]
    fn bash_completes_an_option() {
        let script = completions(Shell::Bash)
            + "\nCOMP_WORDS=(ecapture gotls --map) COMP_CWORD=2\n\
               _ecapture ecapture --map gotls; echo \"${COMPREPLY[@]}\"";
        let said = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "--mapsize\n");
    }
}
