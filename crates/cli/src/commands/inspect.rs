use crate::args::InspectArgs;
use anyhow::{Result, bail};
pub(super) fn run(_args: &InspectArgs) -> Result<()> {
    bail!("later")
}
