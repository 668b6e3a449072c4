use crate::args::PlanArgs;
use anyhow::{Result, bail};
pub(super) fn run(_args: &PlanArgs) -> Result<()> {
    bail!("later")
}
