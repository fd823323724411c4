//! All outputs at once, and what holds for them whatever comes in.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use jiff::tz::TimeZone;
use trace::{Event, HarSink, JsonSink, Palette, PayloadStyle, Sink, TextSink};

/// Memory that a sink writes to, and that can be read when the sink is gone.
#[derive(Clone, Default)]
pub struct Memory(Rc<RefCell<Vec<u8>>>);

impl Memory {
    pub fn take(&self) -> Vec<u8> {
        self.0.take()
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Text as for a terminal without colours, text with hex dumps, JSON lines, and HAR.
pub struct Outputs {
    text: TextSink<Memory>,
    hex: TextSink<Memory>,
    json: JsonSink<Memory>,
    har: HarSink<Memory>,
    /// What they wrote, in this order.
    written: [Memory; 4],
}

impl Outputs {
    pub fn new() -> Self {
        let written: [Memory; 4] = Default::default();
        let [text, hex, json, har] = written.clone();
        Self {
            text: TextSink::new(text, PayloadStyle::Text, Palette::PLAIN, TimeZone::UTC)
                .indent_json(true),
            hex: TextSink::new(hex, PayloadStyle::Hex, Palette::PLAIN, TimeZone::UTC),
            json: JsonSink::new(json),
            har: HarSink::new(har),
            written,
        }
    }

    /// Nothing more comes.
    pub fn check(mut self) {
        self.har.finish().expect("writing to memory");
        for sink in [&mut self.text, &mut self.hex] {
            sink.flush().expect("writing to memory");
        }
        let [text, hex, json, har] = self.written.map(|memory| memory.take());
        assert_clean(&text);
        assert_clean(&hex);
        let lines = json.split(|&byte| byte == b'\n');
        for line in lines.filter(|line| !line.is_empty()) {
            serde_json::from_slice::<serde_json::Value>(line).expect("a line of JSON");
        }
        serde_json::from_slice::<serde_json::Value>(&har).expect("JSON");
    }
}

impl Sink for Outputs {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        self.text.event(event)?;
        self.hex.event(event)?;
        self.json.event(event)?;
        self.har.event(event)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Text does nothing to a terminal, and doesn't look like what it is not.
pub fn assert_clean(text: &[u8]) {
    let text = str::from_utf8(text).expect("UTF-8");
    for c in text.chars() {
        let harmless = match c {
            '\n' | '\t' => true,
            // Marks, overrides and isolates of directions; line separators; byte order marks.
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => false,
            '\u{61c}' | '\u{feff}' | '\u{e0001}'..='\u{e007f}' => false,
            c => !c.is_control(),
        };
        assert!(harmless, "{c:?} in {text:?}");
    }
}
