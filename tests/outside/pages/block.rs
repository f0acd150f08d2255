//! The fenced blocks of a page.

/// A fenced block.
pub struct Block {
    /// Word after the fence: `sh`, `python`, `toml` …; empty if there is none.
    pub language: String,
    /// The use that the test makes of the block.
    pub usage: Use,
    /// Lines between the fences.
    pub text: String,
    /// Line of the fence in the page.
    pub line: usize,
}

/// The use of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Use {
    /// A shell script that ends by itself.
    Shell,
    /// A command that runs until the page ends.
    Run,
    /// The same, which tells by listening at a port that it is ready.
    Serve(String),
    /// A script for the interpreter of its language.
    Script,
    /// The content of a file.
    File(String),
    /// More content of a file.
    Append(String),
    /// Output of the block before.
    Output,
    /// Installation of packages, which CI does.
    Install,
    /// Commands that CI runs: here they would run this test, and so themselves, for ever.
    Ci,
    /// Commands that change the host.
    Host,
    /// An illustration.
    Shown,
}

/// The blocks of a page, in order.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (at, line) in page.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(info) => {
                open = true;
                blocks.push(new(info, at + 1));
            }
            None if open => {
                let block = blocks.last_mut().expect("one is open");
                block.text += line;
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!open, "the last block is closed");
    blocks
}

fn new(info: &str, line: usize) -> Block {
    let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
    let usage = match (language, rest.split_once('=').unwrap_or((rest, ""))) {
        ("sh", ("", "")) => Use::Shell,
        ("sh", ("run", "")) => Use::Run,
        ("sh", ("run", port)) => Use::Serve(port.to_owned()),
        ("sh", ("install", "")) => Use::Install,
        ("sh", ("ci", "")) => Use::Ci,
        ("sh", ("host", "")) => Use::Host,
        (_, ("", "")) => Use::Shown,
        (_, ("script", "")) => Use::Script,
        (_, ("output", "")) => Use::Output,
        (_, ("file", path)) => Use::File(path.to_owned()),
        (_, ("append", path)) => Use::Append(path.to_owned()),
        (_, _) => panic!("line {line}: what is to be done with a block of {info:?}?"),
    };
    Block { language: language.to_owned(), usage, text: String::new(), line }
}
