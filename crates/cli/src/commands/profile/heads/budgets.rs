//! `heterokv profile --heads --budgets`: how much of a budget each KV head should have, tried on the text.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use heterokv_cache::{CacheConfig, CachePlan, CacheSpec, HeadProfile, Heads};
use heterokv_eval::{BudgetGrid, Error, mean_divergences, measure_importance};
use heterokv_model::Model;

use crate::load::Opened;
use crate::output::{count, say, tokens as counted};
use crate::progress::Bar;
use crate::requirement::plan;

/// A search for the budgets that lose least.
pub(super) struct BudgetSearch {
    /// What the caches keep, in percent of the bytes of a full one.
    pub(super) ratio: f64,
}

impl BudgetSearch {
    /// What the caches take that are tried, all at the same time.
    ///
    /// # Errors
    /// A ratio that cannot be kept.
    pub(super) fn plans(&self, opened: &Opened, num_tokens: usize) -> Result<Vec<CachePlan>> {
        let config = opened.checkpoint.config();
        // With equal weights it is the same, and with others takes as much.
        let spec: CacheSpec = format!("snapkv:{}%", self.ratio).parse()?;
        let tried = plan(config, &opened.resolve(&spec)?, num_tokens)?;
        let grid = BudgetGrid::default();
        let mut plans = vec![tried; 1 + grid.multipliers.len() * grid.lambdas.len()];
        plans.push(plan(config, &CacheConfig::Full, num_tokens)?);
        Ok(plans)
    }

    /// `profile`, which is to be in `file`, with the budget weights by which the text behind a prompt diverges least from
    /// that of a full cache, and what was found in words.
    ///
    /// # Errors
    /// What the model or a cache refuses.
    pub(super) fn run(
        &self,
        model: &Model,
        [context, continuation]: [&[u32]; 2],
        profile: HeadProfile,
        file: &Path,
    ) -> Result<(HeadProfile, String)> {
        let start = Instant::now();
        let importance = {
            let _bar = Bar::spinner("measuring what heads change");
            measure_importance(model, context)?
        };
        let spec: CacheSpec = format!("baklava:{}%", self.ratio).parse()?;
        let with_weights = |weights: &Vec<f64>| {
            let profile = profile.clone().with_budget_weights(weights.clone())?;
            spec.clone().with_heads(Heads::new(file, profile)).resolve(&model.kv_shape(), None)
        };
        let mut objective = |budgets: &[Vec<f64>]| {
            let configs = budgets.iter().map(with_weights).collect::<Result<Vec<_>, _>>();
            let bar = Bar::new(format!("trying {} budgets", count(budgets.len())));
            let mut show = |done, total| bar.set(done, total);
            let configs = configs.map_err(Error::from)?;
            mean_divergences(model, [context, continuation], &configs, Some(&mut show))
        };
        let choice = importance.search(&BudgetGrid::default(), &mut objective)?;
        let tried = count(choice.num_tried);
        say(&format!("{tried} budgets in {:.0} s", start.elapsed().as_secs_f64()));
        let found = if choice.loss < choice.equal_loss {
            let classes = choice.multipliers.map(|multiplier| multiplier.to_string()).join(" : ");
            format!(
                "by importance, classes of heads have {classes}, layers count by the power {}: a KL of {:.5} from full, \
                 with equal budgets {:.5} ({:+.1} %)",
                choice.lambda,
                choice.loss,
                choice.equal_loss,
                100.0 * (choice.loss / choice.equal_loss - 1.0)
            )
        } else {
            format!("no budget by importance is better than equal ones: a KL of {:.5}", choice.loss)
        };
        let line = format!(
            "{found}; {spec} behind {}, mean over {} steps, the best of {tried} on this text",
            counted(context.len()),
            count(continuation.len()),
        );
        Ok((profile.clone().with_budget_weights(choice.weights)?, line))
    }
}
