//! A virtual machine, emulated by QEMU.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use crate::arch::Arch;

/// What to boot.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) arch: Arch,
    pub(super) kernel: &'a Kernel,
    /// QEMU's name for the processor.
    pub(super) cpu: &'static str,
    /// The userland and the payload.
    pub(super) disks: [&'a Path; 2],
    /// For the kernel, and for our init process.
    pub(super) command_line: String,
    /// Gets what comes over the serial line.
    pub(super) log: PathBuf,
}

impl Machine<'_> {
    /// QEMU's command line.
    pub(super) fn command(&self) -> Command {
        let (machine, console) = match self.arch {
            Arch::Amd64 => ("q35", "ttyS0"),
            Arch::Arm64 => ("virt", "ttyAMA0"),
        };
        let mut command = Command::new(format!("qemu-system-{}", self.arch.gnu()));
        command
            .args([
                "-machine",
                machine,
                "-cpu",
                self.cpu,
                "-accel",
                "tcg,thread=multi",
            ])
            .args([
                "-m",
                "2G",
                "-smp",
                "2",
                "-nographic",
                "-no-reboot",
                "-nic",
                "none",
            ])
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(self.kernel.initramfs())
            .arg("-append")
            .arg(format!(
                "console={console} quiet panic=-1 no_timer_check {}",
                self.command_line
            ));
        let modules = self.kernel.disk();
        for (name, disk) in ["userland", "payload", "modules"].into_iter().zip([
            self.disks[0],
            self.disks[1],
            &modules,
        ]) {
            command.arg("-drive").arg(format!(
                "if=none,id={name},format=raw,readonly=on,file={}",
                disk.display()
            ));
            command
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={name},serial={name}"));
        }
        command
    }

    /// Runs it until it turns itself off, which is an error after `limit`. Shows what it says as far
    /// as that is about tests.
    pub(super) fn run(&self, limit: Duration) -> Result<()> {
        let mut log = File::create(&self.log).with_context(|| self.log.display().to_string())?;
        let mut qemu = Running::start(&mut self.command())?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match qemu.lines.recv_timeout(left) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    if line.starts_with("test ") {
                        eprintln!("  {line}");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!("still running after {limit:?}"),
            }
        }
        let status = qemu.process.wait()?;
        if !status.success() {
            bail!("QEMU: {status}");
        }
        Ok(())
    }
}

/// QEMU, ended when dropped.
struct Running {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("QEMU can't be started")?;
        let (sender, lines) = mpsc::channel();
        let output = process.stdout.take().context("QEMU has no output")?;
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { process, lines })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
