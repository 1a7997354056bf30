-- Rows: drugs that end before they start, though no sequence says so.
select
    drug_exposure_id,
    drug_exposure_start_date,
    drug_exposure_end_date,
    days_supply
from {{ ref('drug_exposure') }}
where
    drug_exposure_end_date < drug_exposure_start_date
    and verbatim_end_date is null
