use crate::args::ChatArgs;
use anyhow::{Result, bail};
pub(super) fn run(_args: &ChatArgs) -> Result<()> {
    bail!("later")
}
