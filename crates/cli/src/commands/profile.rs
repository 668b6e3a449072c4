use crate::args::ProfileArgs;
use anyhow::{Result, bail};
pub(super) fn run(_args: &ProfileArgs) -> Result<()> {
    bail!("later")
}
